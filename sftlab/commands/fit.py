"""``fit``: train the stages of a schedule."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Train; the arguments are LightningCLI's and are read from ``sys.argv``, so that launched ranks get them too."""
    from sftlab.cli import LabCLI, freeze_imports, told_in_a_message

    freeze_imports()
    with told_in_a_message():
        LabCLI()
    return 0
