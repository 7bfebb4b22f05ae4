"""``export``: turn a checkpoint, a single file or a folder of shards, into a Hugging Face folder."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from sftlab.commands.options import CommandParser, wants_help
from sftlab.screen import show

PARSER = CommandParser("export", "Writes a Hugging Face folder from a checkpoint of fit.")
PARSER.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="lightning_logs/<run>/checkpoints/step=....ckpt, a file or a folder of FSDP2 shards",
)
PARSER.add_argument("--to", required=True, metavar="FOLDER", help="the folder to write; it must not exist")


def model_folder(path: Path, stack: ExitStack) -> Path:
    """The Hugging Face folder that a path means: a run's last stage, a stage or the folder itself.

    A checkpoint is exported to a folder that lives as long as ``stack``.

    Raises:
        ValueError: The path is none of these.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return path
    stages = sorted((path / "stages").glob("[0-9]*"), key=lambda p: int(p.name.split("-")[0]))
    if stages:
        return stages[-1]
    if path.suffix != ".ckpt":
        raise ValueError(f"checkpoint: {path} is no run folder, stage, checkpoint or Hugging Face folder")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
    export(str(path), str(folder))
    return folder


def export(checkpoint: str, to: str) -> None:
    """Write a Hugging Face folder from a checkpoint of ``fit``.

    Args:
        checkpoint: lightning_logs/<run>/checkpoints/step=....ckpt, a file or a folder of FSDP2 shards.
        to: The folder to write; it must not exist.

    Raises:
        ValueError: No such checkpoint, or the folder exists.
    """
    import json

    from sftlab.model.export import ARCHITECTURE, checkpoint_weights, write_folder
    from sftlab.plan.ledger import LedgerRow

    path, folder = Path(checkpoint), Path(to)
    if folder.exists():
        raise ValueError(f"--to: {folder} exists; name a new folder")
    run = path.parent.parent
    if not (run / ARCHITECTURE).is_dir():
        raise ValueError(f"--checkpoint: {run / ARCHITECTURE} is missing; name a checkpoint inside its run's folder")
    ledger_file = run / "ledger.json"
    rows = json.loads(ledger_file.read_text(encoding="utf-8"))["rows"] if ledger_file.is_file() else []
    write_folder(folder, run / ARCHITECTURE, checkpoint_weights(path), [LedgerRow(**row) for row in rows])
    show(f"Exported to {folder}")


def main(arguments: list[str]) -> int:
    """Parse and run."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    export(options.checkpoint, options.to)
    return 0
