"""What a server's response means: texts; no text, and why; or a fault that is temporary or permanent.

200, choices with text               the texts
200, choices without text            no text: reasoning alone, refusal, content filter, tool calls, empty
400 that speaks of a content filter  no text: content filter
200 with a web page or a stream      a fault of the endpoint: other requests will meet it too
200 cut, no JSON, without choices    may pass
408, 425, 429, 5xx                   may pass; the server may say when
401, 404, unknown model, quota       fatal: every request will meet it
403, 405                             a fault of the endpoint
any other                            a fault of this request
"""

from __future__ import annotations

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from sftlab.endpoint.replies import Reply

Fault = Literal["request", "endpoint", "fatal"]
"""Who else will meet a fault: nobody, probably all other requests, or certainly all."""

MAY_PASS = {408, 425, 429, *range(500, 600)}
"""Statuses after which the same request may succeed."""
FAULTS: dict[int, Fault] = {401: "fatal", 404: "fatal", 403: "endpoint", 405: "endpoint"}
"""Statuses that say more than that this request is at fault."""
_NO_MODEL = re.compile(r"model\W.{0,80}?(?:not found|not exist|unknown)|(?:unknown|invalid|no such) model", re.I | re.S)
_FILTERED = re.compile(r"content[ _-](?:filter|policy|management)|responsible_?ai", re.I)


class ChatFailed(Exception):
    """There was no reply; the message says why, ``fault`` which other requests will fail too."""

    def __init__(self, reason: str, fault: Fault = "request") -> None:
        super().__init__(reason)
        self.fault = fault


class MayPass(Exception):
    """A request failed in a way that may be temporary.

    Attributes:
        wait_s: Seconds that the server asks us to wait.
        fault: What it is where it does not pass.
    """

    def __init__(self, reason: str, wait_s: float | None = None, fault: Fault = "endpoint") -> None:
        super().__init__(reason)
        self.wait_s, self.fault = wait_s, fault


def read_body(data: bytes, kind: str) -> dict[str, Any]:
    """Return the JSON object of a response with status 200 and content type ``kind``.

    Raises:
        MayPass: It is truncated or not an object.
        ChatFailed: It is a web page, or a stream.
    """
    start = data[:200].lstrip().lower()
    if start.startswith(b"<") or "html" in kind.lower():
        raise ChatFailed("the server sent a web page instead of an answer; check the URL (most end in /v1)", "endpoint")
    if start.startswith(b"data:") or "event-stream" in kind.lower():
        raise ChatFailed("the server sent a stream instead of an answer; it has to answer in one piece", "endpoint")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise MayPass("the answer is cut or is not JSON") from None
    if not isinstance(body, dict):
        raise MayPass("the answer is not a JSON object")
    return body


def read_reply(body: dict[str, Any], n: int) -> Reply:
    """Return the texts of a response; for missing ones, why.

    Raises:
        MayPass: There are no choices (some servers send their errors with status 200).
        ChatFailed: There are fewer than asked for.
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        said = body.get("error")
        raise MayPass(f"the answer has no choices{f': {json.dumps(said):.200}' if said else ''}")
    read = [_choice(choice) for choice in choices]
    if len(read) != n:
        raise ChatFailed(f"{n} answers asked for, {len(read)} given; ask one at a time", "endpoint")
    texts, complete, missing = zip(*read, strict=True)
    return Reply(texts, complete, missing)


def _choice(choice: Any) -> tuple[str, bool, str]:
    """Return text, whether it ended before the limit, and why it is missing (empty if it is not)."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise MayPass("the answer has no choices")
    finish, content = choice.get("finish_reason"), message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        message = message | {"refusal": message.get("refusal") or any(part.get("refusal") for part in parts)}
    text, cut = content if isinstance(content, str) else "", finish == "length"
    if finish == "content_filter":
        return "", False, "stopped by the server's content filter"
    if text.strip():
        return text, not cut, ""
    if message.get("refusal"):
        return "", True, "a refusal instead of text"
    if message.get("tool_calls") or message.get("function_call"):
        return "", True, "tool calls alone, without text"
    if message.get("reasoning_content") or message.get("reasoning"):
        return "", not cut, f"reasoning alone, without an answer{' (cut at the limit of tokens)' if cut else ''}"
    return "", not cut, "cut at the limit of tokens before any text" if cut else "an empty answer"


def read_status(status: int, said: str, where: str, wait: str | None) -> Reply | ChatFailed | MayPass:
    """Interpret a status other than 200.

    Args:
        status: The status.
        said: The body.
        where: The host and its text, for messages.
        wait: The header Retry-After.
    """
    reason = f"{status} from {where}"
    if 300 <= status < 400:
        return ChatFailed(f"{reason}: it sends us elsewhere; give the final address as the endpoint", "fatal")
    if status in (400, 422) and _FILTERED.search(said):
        return Reply(("",), (False,), ("stopped by the server's content filter",))
    if "insufficient_quota" in said or (status in (400, 422) and _NO_MODEL.search(said)):
        return ChatFailed(reason, "fatal")
    if status in MAY_PASS:
        return MayPass(reason, retry_after(wait))
    return ChatFailed(reason, FAULTS.get(status, "request"))


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a server asks us to wait, given as a number or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
