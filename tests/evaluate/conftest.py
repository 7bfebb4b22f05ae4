"""Fixtures of the evaluation tests."""

from collections.abc import Iterator

import pytest
from chat_stub import SECRET, Stub

from sftlab.evaluate import judge


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(judge, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()
