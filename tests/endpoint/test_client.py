"""The chat client: every kind of failure ends in a reply or a reason, replies are kept, the key is not."""

import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from chat_stub import SECRET, Stub

from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat


def _client(stub: Stub, **options: Any) -> ChatClient:
    return ChatClient(stub.url, "stub", **options)


ASK = [("user", "hello")]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("busy", r"429 .*\(6 tries\)"), ("broken", "500 .*6 tries"), ("cut", "cut or is not JSON"),
        ("hang_up", "the connection broke"), ("error_in_200", "no choices"), ("slow", "no answer in 0.2 s"),
        ("drip", "no answer in 0.2 s"), ("flagged", "content policy"), ("elsewhere", "sends us elsewhere"),
    ],
)  # fmt: skip
def test_failures_say_why(act: str, message: str, stub: Stub) -> None:
    stub.script = lambda i: act
    with pytest.raises(ChatFailed, match=message):
        _client(stub, timeout_s=0.2).chat(ASK)
    assert len(stub.requests) == (1 if act in ("flagged", "elsewhere") else 6)


def test_a_server_s_waiting_time_is_honoured(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_first(header: str) -> float:
        stub.requests.clear()
        stub.script = lambda i: "good" if i else "busy"
        stub.do_busy = lambda to, body: stub.send(to, 429, b"{}", Retry_After=header)  # type: ignore[method-assign]
        begin = time.monotonic()
        _client(stub).chat(ASK)
        return time.monotonic() - begin

    assert wait_first("0.4") >= 0.4
    assert wait_first(formatdate(time.time() + 2, usegmt=True)) >= 0.9
    assert wait_first("soon") < 0.4
    with pytest.raises(ChatFailed, match="asks to wait 3,600 s"):
        wait_first("3600")


def test_requests_and_replies(stub: Stub) -> None:
    client = _client(stub)
    reply = client.chat(ASK, temperature=None, max_tokens=5, seed=3, n=2)
    assert reply == ((stub.text,) * 2, (True, True))
    assert stub.requests[0] == {
        "model": "stub", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}], "seed": 3, "n": 2
    }  # fmt: skip
    assert client.chat(ASK, temperature=None, max_tokens=5, seed=3, n=2) == reply and len(stub.requests) == 1
    client.chat(ASK, temperature=None, max_tokens=5, seed=3, n=2, sample=1)
    assert len(stub.requests) == 2 and stub.requests[0] == stub.requests[1]
    stub.reply = lambda text, n=1: Stub.reply(stub, [{"type": "text", "text": "in "}, {"text": "parts"}])  # type: ignore[method-assign]
    assert client.chat(ASK).texts == ("in parts",)
    with pytest.raises(ChatFailed, match="2 answers asked for, 1 given"):
        client.chat(ASK, n=2, max_tokens=7)
    stub.reply = lambda text, n=1: Stub.reply(stub, None)  # type: ignore[method-assign]
    assert client.chat(ASK, max_tokens=8).texts == ("",)


def test_newer_models_name_the_limit_otherwise(stub: Stub) -> None:
    def act(to: BaseHTTPRequestHandler, body: dict[str, Any]) -> bool:
        if "max_tokens" in body:
            return stub.send(to, 400, b'{"error": "Unsupported: max_tokens. Use max_completion_tokens."}')
        return stub.send(to, 200, stub.reply(stub.text))

    stub.do_good = act  # type: ignore[method-assign]
    client = _client(stub)
    replies = client.chat_all([Chat((("user", str(i)),)) for i in range(20)])
    assert all(reply == ((stub.text,), (True,)) for reply in replies)
    assert len(stub.requests) <= 20 + client.num_parallel


def test_equal_chats_are_asked_once(stub: Stub) -> None:
    chats = [Chat((("user", str(i % 3)),)) for i in range(30)]
    assert len(_client(stub).chat_all(chats)) == 30
    assert stub.paid == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://me:{SECRET}@host/v1", "holds more than an address; put the key into"),
        (f"https://host/v1?key={SECRET}", "holds more than an address; put the key into"),
        (f"https://me:{SECRET}@[host/v1", "the endpoint's URL is none"),
        ("host/v1", "'host/v1' is no endpoint"),
        ("https://host name/v1", "is no endpoint"),
        ("", "is no endpoint"),
    ],
)
def test_bad_urls_are_refused_without_repeating_secrets(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ChatClient(url, "model")
    assert SECRET not in str(caught.value)


def test_a_missing_or_odd_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{SECRET}\nX: y")
    with pytest.raises(ChatFailed, match=r"\$JUDGE_KEY holds characters that no key has") as caught:
        _client(stub, key_variable="JUDGE_KEY").chat(ASK)
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    _client(stub, key_variable="JUDGE_KEY").chat(ASK)
    assert "Authorization" not in stub.headers[0]
    with pytest.raises(ValueError, match=r"https://judge.example.com/v1 needs a key: set \$JUDGE_KEY"):
        ChatClient("https://judge.example.com/v1", "stub", "JUDGE_KEY").require_key()
    for nearby in ("http://localhost:8000", "http://10.0.0.7/v1", "http://vllm:8000/v1", "http://[::1]/v1"):
        ChatClient(nearby, "stub", "JUDGE_KEY").require_key()
