"""``export``: turn a run, a stage or a checkpoint into a Hugging Face folder, here or on the hub."""

from __future__ import annotations

import os
import re
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path

from sftlab.commands.options import CommandParser, new_folder, wants_help
from sftlab.run.results import path_named
from sftlab.screen import show

DTYPES = ("float32", "bf16", "fp16")


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", text):
        raise ArgumentTypeError(f"{text!r} is not a size; write 5GB or 500MB")
    return text


PARSER = CommandParser(
    "export",
    "Writes a Hugging Face folder from a run, a stage or a checkpoint of fit, and uploads it if requested.",
    notes="""
The upload needs a token that may write, in the variable HF_TOKEN. A repository that is not there is made, private. The
model card's licence is yours to add: it depends on the base and on the data.
""",
)
PARSER.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="a run (its last stage), run/stage, an exported stage, or lightning_logs/<run>/checkpoints/step=....ckpt",
)
PARSER.add_argument("--to", default="", metavar="FOLDER", help="the folder to write; it must not exist")
PARSER.add_argument("--merge", action="store_true", help="of a run with an adapter, write the whole model")
PARSER.add_argument("--dtype", choices=DTYPES, default=None, help="of the weights; as they were trained by default")
PARSER.add_argument("--max_shard_size", type=_size, default=None, metavar="5GB", help="size of one file of weights")
PARSER.add_argument("--push", default="", metavar="ORG/NAME", help="upload to this repository of the hub")
PARSER.add_argument(
    "--dry-run", action="store_true", help="with --push: show what would be uploaded, and upload nothing"
)


def export(
    checkpoint: str, to: str, merge: bool = False, dtype: str | None = None, max_shard_size: str | None = None
) -> None:
    """Write a Hugging Face folder from a run, a stage or a checkpoint of ``fit``.

    Args:
        checkpoint: A run folder, a stage, or lightning_logs/<run>/checkpoints/step=....ckpt.
        to: The folder to write; it must not exist.
        merge: Add an adapter to its base and write the whole model.
        dtype: float32, bf16 or fp16; as they were trained by default.
        max_shard_size: Largest size of a weight file, such as 5GB.

    Raises:
        ValueError: The model does not exist, or the folder exists already.
    """
    from sftlab.run.opening import Form
    from sftlab.run.opening import export as write

    write(checkpoint, new_folder("--to", to), Form(merge, dtype, max_shard_size))


def main(arguments: list[str]) -> int:
    """Parse the options and export."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    options.checkpoint = path_named(options.checkpoint)
    how = (options.merge, options.dtype, options.max_shard_size)
    if not options.push:
        if options.dry_run or not options.to:
            raise ValueError("--dry-run: goes with --push" if options.dry_run else "--to: name the folder to write")
        export(options.checkpoint, options.to, *how)
        show(f"Exported to {options.to}")
        return 0
    from sftlab.model.hub import TOKEN, check_name

    name, token = check_name(options.push), os.environ.get(TOKEN, "").strip()
    if not token and not options.dry_run:
        raise ValueError(
            f"--push: set {TOKEN} in the environment to a token of the hub that may write; or add --dry-run"
        )
    with tempfile.TemporaryDirectory(prefix="sftlab-") as passing:
        folder = options.to or str(Path(passing) / "model")
        export(options.checkpoint, folder, *how)
        _push(Path(folder), name, token, options.dry_run)
        if options.to:
            show(f"Exported to {options.to}")
    return 0


def _push(folder: Path, name: str, token: str, is_trial: bool) -> None:
    from sftlab.model.hub import files_of, push

    files = files_of(folder)
    total = sum(size for _, size in files)
    show(f"{'Would upload' if is_trial else 'Uploading'} {len(files)} files, {total:,} bytes, to {name}:")
    show(*(f"  {size:>15,}  {file}" for file, size in files))
    card = (folder / "README.md").read_text(encoding="utf-8")
    show("Model card:", *(f"  {line}" for line in card.split("---")[1].strip().splitlines()))
    if not is_trial:
        show(f"Uploaded to {push(folder, name, token)}")
