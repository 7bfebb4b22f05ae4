"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data files (GSM8K, Code Alpaca, a ShareGPT-format file); tests that need it skip without it."""
    folder = Path(os.environ.get("SFTLAB_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}: set SFTLAB_SHARED_DATA to a folder that has it")
    return folder
