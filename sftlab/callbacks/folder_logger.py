"""A logger that writes its files directly into a given folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import Logger


class FolderLogger(Logger):
    """The methods that Lightning requires of a logger, for a logger whose folder is already that of the run.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Empty: there is no subfolder for the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run has one set of files and no versions."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.folder)
