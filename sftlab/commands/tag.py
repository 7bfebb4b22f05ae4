"""``tag``: intention tags of an ability's conversations, and a drop list of those whose tags match a pattern."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftlab.analysis.tags.tagging import Tagger, TagReport

HELP = """usage: python -m sftlab tag --config FILE --ability general --to FOLDER [--drop] [options] [any option of fit]

  --ability NAME         the ability whose user turns are tagged
  --tagger rules         a small transparent scorer (the default); or a Hugging Face folder or id; or an
                         OpenAI-compatible endpoint such as http://localhost:8000/v1 (key: $OPENAI_API_KEY)
  --tagger_model NAME    the endpoint's name of the model
  --template NAME        template of a Hugging Face model that has none (vicuna_v1.1 for InsTagger)
  --prompt FILE          the words a model is asked with, {query} where the query goes
  --turns all            tag every user turn, or only the first
  --drop [PATTERN]       write drop.jsonl: conversations with a tag that the pattern matches anywhere, upper and lower
                         case alike (code|math without a value)
  --to FOLDER            where tags.jsonl, drop.jsonl and report.md go; a model's replies are kept there too, so that a
                         killed call goes on where it was

Then train without them: --data.abilities.general.drop FOLDER/drop.jsonl
The report of a study whose runs use that list shows the tags; also if FOLDER lies in lightning_logs/<study>/inside.
"""
_NAMES = ("ability", "tagger", "tagger_model", "template", "prompt", "turns", "drop", "to")


def main(arguments: list[str]) -> int:
    """Tag and report."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    from sftlab.analysis.tags.tagging import (
        DROPPED_TAGS,
        TELL_EVERY,
        TURNS,
        TagReport,
        tag_conversations,
        tag_pattern,
        write_tags,
    )
    from sftlab.cli import parse_objects
    from sftlab.commands.options import output_folder, take_options
    from sftlab.data.droplist import write_drops

    options, rest = take_options(arguments, _NAMES)
    turns = options.get("turns", "all")
    if turns not in TURNS:
        raise ValueError(f"--turns: {turns!r} is not one of {', '.join(TURNS)}")
    pattern = tag_pattern(options["drop"] or DROPPED_TAGS) if "drop" in options else None
    abilities = parse_objects(rest).data.abilities
    folder = output_folder(options)
    ability = abilities.get(options.get("ability", ""))
    if ability is None:
        raise ValueError(f"--ability: name one of {', '.join(abilities)}, not {options.get('ability', '')!r}")
    tagger = _tagger(options, folder)
    report = TagReport(ability.name, tagger.name, turns, pattern)
    write_tags(folder / "tags.jsonl", tag_conversations(ability.conversations(), tagger, turns), report, _tell)
    if report.num_conversations >= TELL_EVERY:
        print(file=sys.stderr)
    if pattern:
        write_drops(folder / "drop.jsonl", report.drops.values())
    (folder / "report.md").write_text(report.markdown(tagger.notes()), encoding="utf-8")
    report.exhibit(tagger.notes()).write(folder, "tags")
    _print(report, tagger, folder)
    return 0


def _tell(done: int) -> None:
    print(f"\r{done:,} conversations", end="", file=sys.stderr, flush=True)


def _tagger(options: dict[str, str], folder: Path) -> Tagger:
    from sftlab.analysis.tags.rules import RuleTagger

    name = options.get("tagger") or "rules"
    if name == "rules":
        if useless := [key for key in ("tagger_model", "template", "prompt") if key in options]:
            raise ValueError(f"--{useless[0]} has no use with the rules; name a model with --tagger")
        return RuleTagger()
    from sftlab.analysis.tags.llm_tagger import PROMPT, LLMTagger, LocalChats, ServerChats, model_identity
    from sftlab.endpoint.client import ChatClient
    from sftlab.endpoint.replies import ReplyCache

    prompt, replies = PROMPT, folder / "replies.jsonl"
    if "prompt" in options:
        if not Path(options["prompt"]).is_file():
            raise ValueError(f"--prompt: there is no file {options['prompt']}")
        prompt = Path(options["prompt"]).read_text(encoding="utf-8").strip("\n")
    if name.startswith(("http://", "https://")):
        model = options.get("tagger_model", "")
        if not model:
            raise ValueError("--tagger_model: name the endpoint's model")
        return LLMTagger(ServerChats(ChatClient(name, model, cache=replies)), model, prompt)
    from sftlab.evaluate.local import LocalModel

    local = LocalModel.from_folder(name, template=options.get("template", ""))
    return LLMTagger(LocalChats(local, ReplyCache(replies), model_identity(name)), Path(name).name, prompt)


def _print(report: TagReport, tagger: Tagger, folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for line in [*report.summary(), *tagger.notes()]:
        console.print(line, highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("tag", "conversations", "share", ""):
        table.add_column(column, justify="left" if column in ("tag", "") else "right")
    for row in report.tag_rows(most=20):
        table.add_row(*row)
    console.print(table)
    for reason, count in report.dropped.most_common(10):
        console.print(f"dropped, {reason}: {count:,}", highlight=False)
    for name in sorted(report.samples):
        console.print(f"\n{name}:", style="bold", highlight=False)
        for uid, text in sorted(report.samples[name].items()):
            console.print(f"  {uid[:8]} {text}", highlight=False, markup=False)
    written = ["tags.jsonl", *(["drop.jsonl"] if report.pattern else []), "report.md"]
    console.print(f"\nWritten to {folder}: {', '.join(written)}")
