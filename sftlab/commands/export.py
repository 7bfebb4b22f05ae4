"""``export``: turn a checkpoint, a single file or a folder of shards, into a Hugging Face folder."""

from __future__ import annotations

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
PARSER.add_argument(
    "--merge",
    action="store_true",
    help="of a run with an adapter, write the whole model; --checkpoint may then be a stage's folder too",
)


def export(checkpoint: str, to: str, merge: bool = False) -> None:
    """Write a Hugging Face folder from a checkpoint of ``fit``.

    Args:
        checkpoint: lightning_logs/<run>/checkpoints/step=....ckpt, a file or a folder of FSDP2 shards.
        to: The folder to write; it must not exist.
        merge: Add an adapter to its base and write the whole model.

    Raises:
        ValueError: No such checkpoint, or the folder exists.
    """
    from sftlab.run.opening import export_checkpoint

    folder = Path(to)
    if folder.exists():
        raise ValueError(f"--to: {folder} exists; name a new folder")
    export_checkpoint(Path(checkpoint), folder, merge)
    show(f"Exported to {folder}")


def main(arguments: list[str]) -> int:
    """Parse and run."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    export(options.checkpoint, options.to, options.merge)
    return 0
