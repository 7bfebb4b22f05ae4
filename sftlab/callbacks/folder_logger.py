"""A logger whose files lie in a folder that it is given, and in none below."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import Logger


class FolderLogger(Logger):
    """What Lightning asks every logger for, where the run's folder is one already.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Nothing lies between the folder and the files."""
        return ""

    @property
    def version(self) -> str:
        """A run has one set of files, so there is no version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.folder)
