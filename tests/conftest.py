"""Fixtures that several test files share."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_stub import SECRET, Stub
from fitting import RANK_VARIABLES
from hypothesis import settings

from sftlab.endpoint import client
from sftlab.sandbox.host import Sandbox

settings.register_profile("untimed", deadline=None)  # a busy machine is not a fault of what is tested
settings.load_profile("untimed")
_BEFORE = dict(os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, then those with most tests: no process waits at the end for another's file."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    all_of = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -all_of[item.path], item.path))


def pytest_collection_finish() -> None:
    """Going through all that was imported, for each garbage collection, is 7 % of the time of small trainings."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_of_a_trainer_is_left() -> Iterator[None]:
    """What a Trainer leaves in this process would be found by the next test and by what it starts."""
    _forget_ranks()  # of a fixture of more than one test
    yield
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        sys.modules["torch.distributed"].destroy_process_group()
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)
    _forget_ranks()


def _forget_ranks() -> None:
    for name in RANK_VARIABLES:
        if name not in _BEFORE:
            os.environ.pop(name, None)


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
