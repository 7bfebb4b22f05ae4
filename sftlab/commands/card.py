"""``card``: the composition of a mixture, as a page and as Markdown."""

from __future__ import annotations

from pathlib import Path

from sftlab.commands.options import CommandParser, names, output_folder, wants_help
from sftlab.screen import show

PARSER = CommandParser(
    "card",
    "Writes card.html (one file, nothing is loaded from elsewhere) and card.md: per ability examples, tokens,\n"
    "supervised tokens, turns, lengths, vocabulary, what was changed or left out, samples; between abilities shared\n"
    "vocabulary, same conversations and near-duplicates. Needs the tokenizer, no model weights.",
    takes_config=True,
)
PARSER.add_argument(
    "--to", default="", metavar="FOLDER", help="lightning_logs/<study>/exhibits/card puts it into the report of a study"
)
PARSER.add_argument(
    "--tags", type=names, default=[], metavar="A=FILE,B=FILE", help="tags.jsonl of abilities, as tag writes it"
)


def main(arguments: list[str]) -> int:
    """Write the card."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    from sftlab.analysis.card.composition import compose
    from sftlab.analysis.card.page import page
    from sftlab.analysis.card.text import exhibit, markdown
    from sftlab.cli import parse_objects
    from sftlab.config import option_pairs
    from sftlab.files import whole_file

    objects = parse_objects(config)
    folder = output_folder(options.to)
    tags = _tags(options.tags, list(objects.data.abilities))
    objects.data.load(objects.model.tokenizer)
    mix = compose(objects.data, tags)
    configs = [Path(value).stem for name, value in option_pairs(config) if name in ("config", "c")]
    title = configs[-1] if configs else "mixture"
    for name, text in (("card.html", page(mix, title)), ("card.md", markdown(mix, title))):
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")
    exhibit(mix, title, folder / "card.html").write(folder, "card")
    show(f"Written to {folder}: card.html, card.md")
    return 0


def _tags(given: list[str], abilities: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return tags of conversations by uid, from the named files.

    Raises:
        ValueError: A file is missing or has no tags, or there is no such ability.
    """
    from sftlab.data.records import read_records

    tags: dict[str, dict[str, list[str]]] = {}
    for item in given:
        name, _, path = item.partition("=")
        if name not in abilities or not path:
            raise ValueError(f"--tags: write ABILITY=FILE with one of {', '.join(abilities)}, not {item!r}")
        tags[name] = {}
        for number, row in enumerate(read_records(path), start=1):
            if not isinstance(row, dict) or not isinstance(row.get("tags"), list):
                raise ValueError(f"--tags: {path}, record {number}: no tags; give a tags.jsonl that tag wrote")
            tags[name][str(row.get("uid"))] = list(map(str, row["tags"]))
    return tags
