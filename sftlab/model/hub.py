"""Uploads a folder to the hub. The token comes from the environment only and appears in no message."""

from __future__ import annotations

import re
from pathlib import Path

from sftlab.credentials import mask
from sftlab.files import explain

TOKEN = "HF_TOKEN"  # the variable that holds the token
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")


def check_name(name: str) -> str:
    """Check the name of a repository of the hub.

    Raises:
        ValueError: It is not a valid name.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise ValueError(f"--push: {name!r} can be no repository of the hub; write ORGANISATION/NAME")
    return name


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Return names and bytes of the files to upload."""
    return [
        (str(path.relative_to(folder)), path.stat().st_size) for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def push(folder: Path, name: str, token: str) -> str:
    """Create a private repository if it does not exist, and upload a folder to it.

    Args:
        folder: A Hugging Face folder.
        name: Name of the repository.
        token: A token with write access.

    Returns:
        The repository's address.

    Raises:
        ValueError: The hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        address = str(api.create_repo(name, private=True, exist_ok=True, repo_type="model"))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by sftlab")
    except Exception as error:  # the library raises many kinds of errors, also of the network
        said = explain(error) if isinstance(error, OSError) else str(error)
        words = " ".join(mask(said, token, urls=True).split())[:300]
        raise ValueError(f"--push: the hub did not take {name}: {words}") from None
    return address
