"""The model card: a README.md with metadata for the hub, what was trained and the scores.

The card names no licence: the user must choose one that the base and the data allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftlab.plan.ledger import LedgerRow
from sftlab.results.score import ScoreRow

FROM_SCRATCH = "a LLaMA from scratch"  # the base of a model trained from scratch
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(note: Mapping[str, Any], rows: Sequence[LedgerRow], scores: Sequence[ScoreRow] = ()) -> str:
    """Return a model card in Markdown.

    Args:
        note: The model's origin, as stored in an export.
        rows: What was trained.
        scores: Scores of this model.
    """
    import yaml

    base = str(note.get("base", "a model of unknown origin"))
    start = "Trained from scratch" if base == FROM_SCRATCH else f"Fine-tuned from `{_shown(base)}`"
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sftlab"],
    }
    if base_id := hub_id(base):
        head["base_model"] = base_id
        head["base_model_relation"] = "finetune"
    if datasets := [str(name) for name in note.get("datasets", [])]:
        head["datasets"] = datasets
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"{start} with sftlab, conversation template `{note.get('template', 'unknown')}`.",
        *([f"The template prints a date, here as in training always {note['day']}."] if "day" in note else []),
        "",
        *_trained(rows),
        *_settings(note.get("training", {})),
        *_scores(scores),
    ]
    return "\n".join(lines)


def hub_id(path: str) -> str | None:
    """Return the hub id that a model was loaded by, without its revision; None for a folder or a base of the lab."""
    name = path.partition("@")[0]
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _shown(base: str) -> str:
    """Return a base without folders of this machine."""
    return base if hub_id(base) or "/" not in base else Path(base).name


def _trained(rows: Sequence[LedgerRow]) -> list[str]:
    if not rows:
        return []
    lines = [
        "What was trained (repeats counted; shares of the stage):",
        "",
        "| stage | ability | examples | tokens | supervised tokens | share of supervised tokens | epochs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.stage} | {row.ability} | {row.examples:,} | {row.tokens:,} | {row.supervised_tokens:,} "
            f"| {row.share_supervised_tokens:.2%} | {row.epochs:.2f} |"
        )
    given_up = [f"{row.ability} {row.given_up_examples:,}" for row in rows if row.given_up_examples]
    if given_up:
        names = ", ".join(given_up)
        lines += ["", f"Of these examples, given up with the steps that trained them, so not in the weights: {names}"]
    return [*lines, ""]


def _settings(training: Mapping[str, Any]) -> list[str]:
    if not training:
        return []
    rows = (f"| {_cell(name)} | {_cell(value)} |" for name, value in training.items())
    return ["How:", "", "| setting | value |", "|---|---|", *rows, ""]


def _cell(value: object) -> str:
    """Put a text on one line and escape what would end a cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _scores(scores: Sequence[ScoreRow]) -> list[str]:
    found = [(row, row.score()) for row in scores]
    if not found:
        return []
    lines = ["What it scored:", "", "| task | metric | problems | score | 95 % interval |", "|---|---|---:|---:|---|"]
    for row, score in found:
        interval = f"{score.low:.4f} to {score.high:.4f}"
        lines.append(f"| {row.task} | {score.metric} | {score.num_problems:,} | {score.value:.4f} | {interval} |")
    return [*lines, ""]
