"""A client for any OpenAI-compatible endpoint, with a cache on disk: what was answered once is never paid for again.

    chat -> in the cache? ---yes--------------------------> reply
              no -> POST -> 200 and whole -> cache, fsync -> reply
                     408, 425, 429, 5xx, timeout, cut body -> wait, again (at most ``MAX_TRIES`` in all) -> ChatFailed
                     any other status                      -> ChatFailed at once

The key comes from an environment variable, is read when a request is made and is kept nowhere.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from sftlab.endpoint.replies import Chat, Reply, ReplyCache

MAX_TRIES = 6
"""Requests made for one reply at most."""
FIRST_WAIT_S = 1.0
"""Wait after the first failure; doubled after each further one up to ``LONGEST_WAIT_S``, times a random 0.5 to 1."""
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for a longer wait than this is taken as a failure."""
MAX_REPLY_BYTES = 64 << 20
AGAIN = {408, 425, 429, *range(500, 600)}
"""Statuses after which the same request may succeed."""
REFUSED = {401, 404}
"""Statuses that every further request would get too."""


class ChatFailed(Exception):
    """No reply could be had; the message says why."""


class _Again(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, reason: str, wait_s: float | None = None, connected: bool = True) -> None:
        super().__init__(reason)
        self.wait_s, self.connected = wait_s, connected


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        """Refuse."""
        return None


class ChatClient:
    """Asks one model at one endpoint.

    Args:
        base_url: Up to and without ``/chat/completions``, such as ``https://api.openai.com/v1``.
        model: The endpoint's name of the model.
        key_variable: Environment variable that holds the key; servers that need none are asked without.
        cache: File of replies, see ``ReplyCache``.
        num_parallel: Requests under way at once.
        timeout_s: Seconds that one request may take.

    Raises:
        ValueError: The URL cannot be one, or holds a secret.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        cache: Path | None = None,
        num_parallel: int = 8,
        timeout_s: float = 180.0,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the URL is not repeated here: it may hold a secret
            raise ValueError("the endpoint's URL is none; write it like https://api.openai.com/v1") from None
        if parts.username or parts.password or parts.query:
            raise ValueError(f"the endpoint's URL holds more than an address; put the key into ${key_variable}")
        if not valid or parts.fragment or base_url.split() != [base_url]:
            raise ValueError(f"{base_url!r} is no endpoint; write it like https://api.openai.com/v1")
        if not model or num_parallel < 1 or timeout_s <= 0:
            given = f"model {model!r}, num_parallel {num_parallel}, timeout_s {timeout_s}"
            raise ValueError(f"{given}: give the model's name, and numbers larger than 0")
        self.base_url, self.host = base_url.rstrip("/").removesuffix("/chat/completions"), parts.hostname or ""
        self.model, self.key_variable = model, key_variable
        self.num_parallel, self.timeout_s = num_parallel, timeout_s
        self.cache = ReplyCache(cache)
        self._limit_name, self._down = "max_tokens", ""
        self._stop, self._random = threading.Event(), random.Random()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def require_key(self) -> None:
        """Tell before any work is done that the key is missing; servers nearby are taken to need none.

        Raises:
            ValueError: The variable is not set and the endpoint is a public host.
        """
        if not os.environ.get(self.key_variable, "").strip() and not _is_nearby(self.host):
            raise ValueError(f"{self.base_url} needs a key: set ${self.key_variable} (to any word if it needs none)")

    def chat(
        self,
        messages: Sequence[tuple[str, str]],
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        seed: int | None = None,
        n: int = 1,
        sample: int = 0,
    ) -> Reply:
        """Ask once, waiting and retrying; see ``Chat``. Safe to call from several threads.

        Raises:
            ChatFailed: No reply after all tries.
        """
        asked = tuple((role, text) for role, text in messages)
        return self._ask(Chat(asked, temperature, max_tokens, seed, n, sample))

    def chat_all(
        self, chats: Sequence[Chat], tell: Callable[[int, int], None] | None = None
    ) -> list[Reply | ChatFailed]:
        """Ask all, ``num_parallel`` at once; equal chats are asked once, a failure stands in its place.

        Interrupted, it waits for the requests that are under way, so that their replies are kept too.

        Args:
            chats: What to ask.
            tell: Called with the number answered or failed, and the number in all.
        """
        self._down = ""
        self._stop.clear()
        unique = list(dict.fromkeys(chats))
        with ThreadPoolExecutor(self.num_parallel) as pool:
            futures: dict[Chat, Future[Reply | ChatFailed]] = {chat: pool.submit(self._try, chat) for chat in unique}
            waiting: set[Future] = set(futures.values())
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()  # a full disk must stop us: replies could no longer be kept
                    if tell is not None:
                        tell(len(unique) - len(waiting), len(unique))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [futures[chat].result() for chat in chats]

    def _try(self, chat: Chat) -> Reply | ChatFailed:
        try:
            return self._ask(chat)
        except ChatFailed as failure:
            return failure

    def _ask(self, chat: Chat) -> Reply:
        key = chat.key(self.model)
        if (kept := self.cache.get(key)) is not None:
            return kept
        for number in range(1, MAX_TRIES + 1):
            if self._down or self._stop.is_set():
                raise ChatFailed(self._down or "interrupted")
            try:
                body = self._post(chat)
                reply = _read_reply(body, chat.n)
                break
            except _Again as again:
                pause = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1)) * self._random.uniform(0.5, 1)
                pause = pause if again.wait_s is None else again.wait_s + pause * 0.1
                if pause > LONGEST_RETRY_AFTER_S:
                    raise ChatFailed(f"{again} (the server asks to wait {pause:,.0f} s)") from None
                if number == MAX_TRIES:
                    # Without a connection the others need not find out one by one.
                    self._down = self._down if again.connected else str(again)
                    raise ChatFailed(f"{again} ({number} tries)") from None
                self._stop.wait(pause)
        about = {"model": self.model, "served_by": body.get("model"), "usage": body.get("usage"), **asdict(chat)}
        self.cache.add(key, reply, about)
        return reply

    def _post(self, chat: Chat) -> dict[str, Any]:
        """One request.

        Raises:
            _Again: It may pass.
            ChatFailed: It will not.
        """
        limit_name = self._limit_name
        content: dict[str, Any] = {"model": self.model, limit_name: chat.max_tokens}
        content["messages"] = [{"role": role, "content": text} for role, text in chat.messages]
        content.update({k: v for k, v in (("temperature", chat.temperature), ("seed", chat.seed)) if v is not None})
        if chat.n > 1:
            content["n"] = chat.n
        data = json.dumps(content).encode()
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data, self._headers())
        try:
            text = self._read(request)
        except urllib.error.HTTPError as error:
            raise self._failure(error, limit_name) from None
        except TimeoutError:
            raise _Again(f"no answer in {self.timeout_s:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            raise _Again(f"{self.host} cannot be reached: {self._clean(str(error.reason))}", connected=late) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the connection broke: {type(error).__name__}") from None
        try:
            body = json.loads(text)
        except ValueError:
            raise _Again("the answer is cut or is not JSON") from None
        if not isinstance(body, dict):
            raise _Again("the answer is not a JSON object")
        return body

    def _read(self, request: urllib.request.Request) -> bytes:
        """The whole body; the timeout is for all of it, a server that drips does not hold us."""
        deadline, parts, size = time.monotonic() + self.timeout_s, [], 0
        with self._opener.open(request, timeout=self.timeout_s) as response:
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if size > MAX_REPLY_BYTES:
                    raise ChatFailed(f"the answer is longer than {MAX_REPLY_BYTES:,} bytes")
        return b"".join(parts)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "sftlab"}
        if key := self._secret():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ChatFailed(f"${self.key_variable} holds characters that no key has")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _secret(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _clean(self, text: str) -> str:
        """Somebody else's words on one line, short, and without the key."""
        key = self._secret()
        return " ".join((text.replace(key, "***") if key else text).split())[:300]

    def _failure(self, error: urllib.error.HTTPError, limit_name: str) -> Exception:
        """What a status other than 200 means."""
        try:
            said = error.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        error.close()
        reason = f"{error.code} from {self.host}: {self._clean(said) or error.reason}"
        if error.code == 400 and limit_name == "max_tokens" and "max_completion_tokens" in said:
            self._limit_name = "max_completion_tokens"  # newer OpenAI models take only this name
            return _Again(reason, wait_s=0.0)
        if error.code in REFUSED or "insufficient_quota" in said:
            self._down = f"{reason} (model {self.model!r}, key from ${self.key_variable})"
            return ChatFailed(self._down)
        if error.code in AGAIN:
            return _Again(reason, _retry_after(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            return ChatFailed(f"{error.code}: {self.host} sends us elsewhere; give the final address as the endpoint")
        return ChatFailed(reason)


def _read_reply(body: dict[str, Any], n: int) -> Reply:
    """The texts of a response; content in parts is joined, no content is an empty text.

    Raises:
        _Again: There are no choices (some servers send their errors with status 200).
        ChatFailed: There are fewer than asked for.
    """
    try:
        contents = [choice["message"]["content"] for choice in body["choices"]]
        complete = tuple(choice.get("finish_reason") != "length" for choice in body["choices"])
        texts = tuple(
            "".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content or "")
            for content in contents
        )
    except (KeyError, TypeError, AttributeError):
        raise _Again("the answer has no choices") from None
    if not texts:
        raise _Again("the answer has no choices")
    if len(texts) != n:
        raise ChatFailed(f"{n} answers asked for, {len(texts)} given; ask one at a time")
    return Reply(texts, complete)


def _retry_after(header: str | None) -> float | None:
    """Seconds that a server asks us to wait, given as a number or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _is_nearby(host: str) -> bool:
    """Whether a host is this machine or on a private network."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
