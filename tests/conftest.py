"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_stub import SECRET, Stub

from sftlab.endpoint import client
from sftlab.sandbox.host import Sandbox


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data files (GSM8K, Code Alpaca, a ShareGPT-format file); tests that need it skip without it."""
    folder = Path(os.environ.get("SFTLAB_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}: set SFTLAB_SHARED_DATA to a folder that has it")
    return folder


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A chat endpoint on this machine."""
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """Where generated code runs; tests that need it skip where this machine has none."""
    sandbox = Sandbox()
    if reason := sandbox.missing():
        pytest.skip(reason)
    return sandbox
