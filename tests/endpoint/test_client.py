"""The chat client: every kind of failure ends in a reply or a reason, replies are kept, the key is not."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from chat_stub import SECRET, Stub

from sftlab.endpoint import client as client_module
from sftlab.endpoint.client import NEUTRAL, ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat


def _client(stub: Stub, **options: Any) -> ChatClient:
    return ChatClient(stub.url, "stub", **options)


ASK = [("user", "hello")]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("busy", r"429 .*\(6 tries in"), ("broken", "500 .*6 tries"), ("cut", "cut or is not JSON"),
        ("hang_up", "the connection broke"), ("error_in_200", "no choices"), ("slow", "no answer in 0.2 s"),
        ("drip", "no answer in 0.2 s"), ("too_long", "400 from .*context length"), ("elsewhere", "sends us elsewhere"),
        ("page", "a web page instead"), ("stream", "a stream instead"), ("forbidden", "403 from 127.0.0.1"),
    ],
)  # fmt: skip
def test_failures_say_why(act: str, message: str, stub: Stub) -> None:
    stub.script = lambda i: act
    with pytest.raises(ChatFailed, match=message):
        _client(stub, timeout_s=0.2).chat(ASK)
    lasting = ("too_long", "elsewhere", "page", "stream", "forbidden")
    assert len(stub.requests) == (1 if act in lasting else 6)


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
    assert reply == ((stub.text,) * 2, (True, True), ("", ""))
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


def test_a_server_s_own_defaults_are_turned_off_or_that_it_cannot_be_is_told(stub: Stub, capsys: Any) -> None:
    client = _client(stub)
    client.chat_all([Chat((("user", "a"),), is_neutral=True), Chat((("user", "b"),))])
    sent = {request["messages"][0]["content"]: request for request in stub.requests}
    assert NEUTRAL.items() <= sent["a"].items() and not NEUTRAL.keys() & sent["b"].keys()

    def act(to: BaseHTTPRequestHandler, body: dict[str, Any]) -> bool:
        if "top_k" in body:
            return stub.send(to, 422, b"Unexpected fields in the request: {'top_k', 'min_p'}")
        return stub.send(to, 200, stub.reply(stub.text))

    stub.do_good = act  # type: ignore[method-assign]
    assert not capsys.readouterr().err
    other = _client(stub)
    chats = [Chat((("user", str(i)),), is_neutral=True) for i in range(20)]
    assert all(reply == ((stub.text,), (True,), ("",)) for reply in other.chat_all(chats))
    assert capsys.readouterr().err.count("takes none of top_p, top_k, min_p, repetition_penalty") == 1


def test_newer_models_name_the_limit_otherwise(stub: Stub) -> None:
    def act(to: BaseHTTPRequestHandler, body: dict[str, Any]) -> bool:
        if "max_tokens" in body:
            return stub.send(to, 400, b'{"error": "Unsupported: max_tokens. Use max_completion_tokens."}')
        return stub.send(to, 200, stub.reply(stub.text))

    stub.do_good = act  # type: ignore[method-assign]
    client = _client(stub)
    replies = client.chat_all([Chat((("user", str(i)),)) for i in range(20)])
    assert all(reply == ((stub.text,), (True,), ("",)) for reply in replies)
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
        ("host/v1", "'host/v1' is not an endpoint"),
        ("https://host name/v1", "is not an endpoint"),
        ("", "is not an endpoint"),
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
        ChatClient("https://judge.example.com/v1", "stub", "JUDGE_KEY").require()
    for nearby in ("http://localhost:8000", "http://10.0.0.7/v1", "http://vllm:8000/v1", "http://[::1]/v1"):
        ChatClient(nearby, "stub", "JUDGE_KEY").require()


def _choice(finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (_choice(content=None, reasoning_content="2 and 2. [[9]]"), "reasoning alone, without an answer"),
        (_choice(content="", reasoning="2 and 2"), "reasoning alone, without an answer"),
        (_choice("length", content=None, reasoning_content="2 and"), "reasoning alone.*cut at the limit"),
        (_choice("content_filter", content=""), "content filter"),
        (_choice("content_filter", content="It beg"), "content filter"),
        (_choice("tool_calls", content=None, tool_calls=[{"id": "x"}]), "tool calls alone"),
        (_choice(content=None, function_call={"name": "f"}), "tool calls alone"),
        (_choice(content=None, refusal="No."), "a refusal"),
        (_choice(content=[{"type": "refusal", "refusal": "No."}]), "a refusal"),
        (_choice(content=" \n"), "an empty answer"),
        (_choice(), "an empty answer"),
        (_choice(content=[]), "an empty answer"),
        (_choice(content=7), "an empty answer"),
        (_choice("length", content=""), "cut at the limit of tokens before any text"),
    ],
)
def test_no_text_says_why_and_is_never_kept(body: dict[str, Any], why: str, stub: Stub, tmp_path: Path) -> None:
    stub.do_good = lambda to, _: stub.send(to, 200, json.dumps(body).encode())  # type: ignore[method-assign]
    client = _client(stub, cache=tmp_path / "replies.jsonl")
    for number in (1, 2):
        reply = client.chat(ASK)
        assert reply.texts == ("",) and re.search(why, reply.why_missing)
        assert len(stub.requests) == number
    assert not (tmp_path / "replies.jsonl").exists()


def test_a_filter_that_answers_400_leaves_no_text(stub: Stub) -> None:
    stub.script = lambda i: "flagged"
    reply = _client(stub).chat(ASK, n=2)
    assert reply.texts == ("", "") and "content filter" in reply.why_missing


@pytest.mark.parametrize(("act", "most"), [("page", 3), ("broken", 3 * 6), ("too_long", 10), ("no_model", 1)])
def test_faults_that_will_not_pass_stop_early(act: str, most: int, stub: Stub) -> None:
    stub.script = lambda i: act
    client = _client(stub, num_parallel=1)
    replies = client.chat_all([Chat((("user", str(i)),)) for i in range(40)])
    assert all(isinstance(reply, ChatFailed) for reply in replies) and client.down
    assert len(stub.requests) == most
    stub.script = lambda i: "good"  # the endpoint is there again
    assert all(reply.texts == (stub.text,) for reply in client.chat_all([Chat(tuple(ASK))])) and not client.down


def test_faults_between_replies_do_not_stop(stub: Stub) -> None:
    stub.script = lambda i: ("page", "page", "too_long", "good")[i % 4]
    replies = _client(stub, num_parallel=1).chat_all([Chat((("user", str(i)),)) for i in range(40)])
    assert sum(isinstance(reply, ChatFailed) for reply in replies) == 30


def test_a_reply_is_not_waited_for_without_end(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_SECONDS", 1.0)
    stub.do_busy = lambda to, body: stub.send(to, 429, b"{}", Retry_After="0.6")  # type: ignore[method-assign]
    stub.script = lambda i: "busy"
    with pytest.raises(ChatFailed, match=r"429 .* \(2 tries in"):
        _client(stub).chat(ASK)


def test_a_key_that_a_server_echoes_goes_nowhere(stub: Stub, tmp_path: Path) -> None:
    said = _choice(content=f"Your key is {SECRET}.") | {
        "model": f"m-{SECRET}",
        "usage": {SECRET: SECRET, "n": [SECRET]},
    }
    stub.do_good = lambda to, _: stub.send(to, 200, json.dumps(said).encode())  # type: ignore[method-assign]
    client = _client(stub, cache=tmp_path / "replies.jsonl")
    assert client.chat([("user", f"is {SECRET} a key?")]).texts == ("Your key is ***.",)
    kept = (tmp_path / "replies.jsonl").read_text()
    assert SECRET not in kept and "***" in kept
    for act in ("denied", "no_model", "broken"):
        reason = f"{act} {SECRET} {urllib.parse.quote(SECRET)}"
        stub.do_said = lambda to, _, text=reason: stub.send(to, 404, text.encode())  # type: ignore[attr-defined]
        stub.script = lambda i: "said"
        with pytest.raises(ChatFailed) as caught:
            client.chat([("user", act)])
        assert SECRET not in str(caught.value) and "***" in str(caught.value)
    assert SECRET not in repr(vars(client)) + repr(client.key)


@pytest.mark.parametrize("given", ["sk-REALKEY", "", "A KEY", "hf/x", "x" * 81, "clé"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ValueError, match="name, such as OPENAI_API_KEY, never the key itself") as caught:
        ChatClient("https://host.example.com/v1", "m", given)
    assert not given or given not in str(caught.value)


def test_a_key_that_could_be_a_name_is_not_repeated_either(stub: Stub) -> None:
    for given in ("sk4fG7REALKEY", "AKIA1234567890ABCDEF"):
        with pytest.raises(ValueError, match="needs a key") as caught:
            ChatClient("https://host.example.com/v1", "m", given).require()
        assert given not in str(caught.value)


def test_a_key_never_crosses_the_network_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ChatClient("http://judge.example.com/v1", "m", "JUDGE_KEY")
    client.require()
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with pytest.raises(ValueError, match="over plain http") as caught:
        client.require()
    assert SECRET not in str(caught.value)
    ChatClient("http://10.0.0.7/v1", "m", "JUDGE_KEY").require()


def test_a_damaged_cache_is_told_and_mended(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "replies.jsonl"
    client = _client(stub, cache=path)
    for i in range(4):
        client.chat([("user", str(i))])
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = [lines[1][:30] + b"\xff\x00" + lines[1][32:], b'["x"]\n']
    path.write_bytes(lines[0] + damaged[0] + lines[2] + damaged[1] + lines[3][:-9])
    again = _client(stub, cache=path)
    for i in range(4):
        again.chat([("user", str(i))])
    assert len(stub.requests) == 4 + 2
    assert "2 lines damaged, moved to replies.jsonl.damaged" in capsys.readouterr().err
    assert (tmp_path / "replies.jsonl.damaged").read_bytes() == b"".join(damaged)
    third = _client(stub, cache=path)
    for i in range(4):
        third.chat([("user", str(i))])
    assert len(stub.requests) == 6


def test_a_disk_that_is_full_within_a_line_is_told_and_the_reply_asked_for_again(stub: Stub, tmp_path: Path) -> None:
    path, code = (
        tmp_path / "replies.jsonl",
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))",
    )
    use = f"""
{code}
from sftlab.endpoint.client import ChatClient
from pathlib import Path
ChatClient({stub.url!r}, "stub", cache=Path({str(path)!r})).chat([("user", "hello")])
"""
    ended = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True)
    assert "OSError" in ended.stderr and str(path) in ended.stderr and path.stat().st_size == 100
    again = _client(stub, cache=path)
    again.chat(ASK)
    assert len(stub.requests) == 2 and _client(stub, cache=path).chat(ASK).texts == again.chat(ASK).texts
    assert len(stub.requests) == 2


def test_servers_of_one_model_s_name_share_no_reply(stub: Stub, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "replies.jsonl"
    old = {"key": Chat((("user", "hello"),)).key("stub"), "texts": ["of who knows whom"], "complete": [True]}
    path.write_text(json.dumps(old) + "\n")
    for _ in range(2):
        for url in (stub.url, stub.url.replace("127.0.0.1", "localhost")):
            client = ChatClient(url, "stub", cache=path)
            assert client.chat(ASK).texts == client.chat([("user", "more")]).texts == (stub.text,)
    assert len(stub.requests) == 4
    assert capsys.readouterr().err.count("do not say which server's stub gave them") == 2


def test_a_file_of_something_else_is_no_cache_and_stays(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nof today\n")
    with pytest.raises(ValueError, match="not a file of replies; it is left as it is"):
        _client(stub, cache=path).require()
    assert path.read_text() == "my notes\nof today\n"
    with pytest.raises(ValueError, match="not a file"):
        _client(stub, cache=tmp_path).require()
