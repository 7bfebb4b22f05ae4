"""``tag``: write intention tags of an ability's conversations, and a drop list of those that match a pattern."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sftlab.analysis.tags.tagging import DROPPED_TAGS, TURNS
from sftlab.commands.options import CommandParser, existing_file, output_folder, wants_help
from sftlab.screen import screen, tell_progress

if TYPE_CHECKING:
    from sftlab.analysis.tags.tagging import Tagger, TagReport

PARSER = CommandParser(
    "tag",
    "Tags what users ask for, and lists conversations to drop by their tags.",
    takes_config=True,
    notes="""
Then train without them: --data.abilities.general.drop FOLDER/drop.jsonl
The report of a study whose runs use that list shows the tags; also if FOLDER lies in lightning_logs/<study>/exhibits.
""",
)
PARSER.add_argument("--ability", default="", metavar="NAME", help="the ability whose user turns are tagged")
PARSER.add_argument(
    "--tagger",
    default="rules",
    metavar="rules",
    help="rules: a small transparent scorer; or a Hugging Face folder or id; or an OpenAI-compatible endpoint such as "
    "http://localhost:8000/v1 (key: $OPENAI_API_KEY)",
)
PARSER.add_argument("--tagger_model", metavar="NAME", help="the endpoint's name of the model")
PARSER.add_argument(
    "--template", metavar="NAME", help="template of a Hugging Face model that has none (vicuna_v1.1 for InsTagger)"
)
PARSER.add_argument(
    "--prompt", type=existing_file, metavar="FILE", help="the words a model is asked with, {query} where the query goes"
)
PARSER.add_argument("--turns", default="all", choices=TURNS, help="tag every user turn, or only the first")
PARSER.add_argument(
    "--drop",
    nargs="?",
    const=DROPPED_TAGS,
    metavar="PATTERN",
    help="write drop.jsonl: conversations with a tag that the pattern matches anywhere, upper and lower case alike "
    "(code|math without a value)",
)
PARSER.add_argument(
    "--to",
    default="",
    metavar="FOLDER",
    help="where tags.jsonl, drop.jsonl and report.md go; a model's replies are kept there too, so that a killed call "
    "goes on where it was",
)


def main(arguments: list[str]) -> int:
    """Tag and report."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    from sftlab.analysis.tags.tagging import (
        TELL_EVERY,
        TagReport,
        tag_conversations,
        tag_pattern,
        write_tags,
    )
    from sftlab.cli import parse_objects
    from sftlab.data.droplist import write_drops
    from sftlab.files import write_text

    pattern = tag_pattern(options.drop) if options.drop is not None else None
    abilities = parse_objects(config).data.abilities
    folder = output_folder(options.to)
    ability = abilities.get(options.ability)
    if ability is None:
        raise ValueError(f"--ability: name one of {', '.join(abilities)}, not {options.ability!r}")
    tagger = _tagger(options, folder)
    report = TagReport(ability.name, tagger.name, options.turns, pattern)
    write_tags(folder / "tags.jsonl", tag_conversations(ability.conversations(), tagger, options.turns), report, _tell)
    if report.num_conversations >= TELL_EVERY:
        print(file=sys.stderr)
    if pattern:
        write_drops(folder / "drop.jsonl", report.drops.values())
    write_text(folder / "report.md", report.markdown(tagger.notes()))
    report.exhibit(tagger.notes()).write(folder, "tags")
    _print(report, tagger, folder)
    return 0


def _tell(done: int) -> None:
    tell_progress("conversations", done)


def _tagger(options: Namespace, folder: Path) -> Tagger:
    from sftlab.analysis.tags.rules import RuleTagger

    name = options.tagger
    if name == "rules":
        if useless := [key for key in ("tagger_model", "template", "prompt") if getattr(options, key)]:
            raise ValueError(f"--{useless[0]} has no use with the rules; name a model with --tagger")
        return RuleTagger()
    from sftlab.analysis.tags.llm_tagger import PROMPT, LLMTagger, LocalChats, ServerChats, model_identity
    from sftlab.endpoint.client import ChatClient
    from sftlab.endpoint.replies import ReplyCache

    prompt, replies = PROMPT, folder / "replies.jsonl"
    if options.prompt:
        prompt = options.prompt.read_text(encoding="utf-8").strip("\n")
    if name.startswith(("http://", "https://")):
        if not options.tagger_model:
            raise ValueError("--tagger_model: name the endpoint's model")
        client = ChatClient(name, options.tagger_model, cache=replies)
        return LLMTagger(ServerChats(client), options.tagger_model, prompt)
    from sftlab.evaluate.local import LocalModel

    local = LocalModel.from_folder(name, template=options.template or "")
    return LLMTagger(LocalChats(local, ReplyCache(replies), model_identity(name, local)), Path(name).name, prompt)


def _print(report: TagReport, tagger: Tagger, folder: Path) -> None:
    from rich import box
    from rich.table import Table

    console = screen()
    for line in [*report.summary(), *tagger.notes()]:
        console.print(line)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("tag", "conversations", "share", ""):
        table.add_column(column, justify="left" if column in ("tag", "") else "right")
    for row in report.tag_rows(most=20):
        table.add_row(*row)
    console.print(table)
    for reason, count in report.dropped.most_common(10):
        console.print(f"dropped, {reason}: {count:,}")
    for name in sorted(report.samples):
        console.print(f"\n{name}:", style="bold")
        for uid, text in sorted(report.samples[name].items()):
            console.print(f"  {uid[:8]} {text}")
    written = ["tags.jsonl", *(["drop.jsonl"] if report.pattern else []), "report.md"]
    console.print(f"\nWritten to {folder}: {', '.join(written)}")
