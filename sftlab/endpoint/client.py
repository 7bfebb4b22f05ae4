"""A client for any OpenAI-compatible endpoint, with a cache on disk, so that no request is paid for twice.

    chat -> in the cache, from this URL's model? ---yes--------------> reply
              no -> POST -> text -> cache, fsync --------------------> reply
                     no text (see response.py) ----------------------> reply that says why; never kept
                     may pass -> wait, again: MAX_TRIES and
                                 MAX_SECONDS in all -----------------> ChatFailed
                     will not pass ----------------------------------> ChatFailed; after a few in a row, or one that
                                                                       all will meet, nothing more is asked

The key comes from an environment variable, is read for each request and stored nowhere; a server's text passes through
``mask`` before anything else sees it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sftlab.bounds import within
from sftlab.credentials import Key, mask
from sftlab.endpoint.replies import Chat, Reply, ReplyCache
from sftlab.endpoint.response import ChatFailed, Fault, MayPass, read_body, read_reply, read_status
from sftlab.screen import complain

MAX_TRIES = 6
"""Requests made for one reply at most."""
MAX_SECONDS = 1800.0
"""Time after which a reply is not asked for again."""
FIRST_WAIT_S = 1.0
"""Wait after the first failure; doubled after each further one up to ``LONGEST_WAIT_S``, times a random 0.5 to 1."""
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for a longer wait than this is taken as a failure."""
MAX_REPLY_BYTES = 64 << 20
STOP_AFTER: dict[Fault, int] = {"fatal": 1, "endpoint": 3, "request": 10}
"""Failures in a row, no reply between them, after which nothing more is asked."""


NEUTRAL = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""What turns off that a server draws from fewer tokens, or from other probabilities, than the model gives."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would carry the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        """Refuse the redirect."""
        return None


class ChatClient:
    """Sends requests to one model at one endpoint.

    Args:
        base_url: Up to and without ``/chat/completions``, such as ``https://api.openai.com/v1``.
        model: The endpoint's name of the model.
        key_variable: Environment variable that holds the key; servers that need none are asked without.
        cache: File of replies, see ``ReplyCache``.
        num_parallel: Requests under way at once.
        timeout_s: Seconds that one request may take.

    Attributes:
        down: Why nothing more is asked, until ``chat_all`` is called anew; empty while the endpoint answers.

    Raises:
        ValueError: The URL cannot be one, or holds a secret; or a number is out of bounds.
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
        self.key = Key(key_variable)
        try:
            parts = urllib.parse.urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the URL is not repeated in the message: it may hold a secret
            raise ValueError("the endpoint's URL is none; write it like https://api.openai.com/v1") from None
        if parts.username or parts.password or parts.query:
            raise ValueError(f"the endpoint's URL holds more than an address; put the key into {self.key.name}")
        if not valid or parts.fragment or base_url.split() != [base_url]:
            shown = mask(base_url, urls=True)
            raise ValueError(f"{shown!r} is not an endpoint; write it like https://api.openai.com/v1")
        if not model:
            raise ValueError("the endpoint's model: give its name")
        within("num_parallel", num_parallel, 1, 1024, is_whole=True)
        within("timeout_s", timeout_s, 0.001, 86_400)
        self.base_url, self.host = base_url.rstrip("/").removesuffix("/chat/completions"), parts.hostname or ""
        self.model, self.num_parallel, self.timeout_s = model, num_parallel, timeout_s
        self.cache = ReplyCache(cache)
        self._limit_name, self._neutral, self.down = "max_tokens", NEUTRAL, ""
        self._in_a_row: dict[Fault, int] = {}
        self._stop, self._random, self._told = threading.Event(), random.Random(), threading.Lock()
        self._told_of_defaults = threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def require(self) -> None:
        """Raise before any work is done if the key is missing, or would cross the network in plain text.

        Nearby servers are assumed to need no key and to be on a private network.

        Raises:
            ValueError: The endpoint is a public host and the variable is not set, or the URL is not https; or the file
                of the cache holds something else.
        """
        self.cache.read()
        if is_nearby(self.host):
            return
        if self.base_url.startswith("http:"):
            if self.key.read():
                raise ValueError(
                    f"{self.base_url}: over plain http anybody on the way reads the key from {self.key.name}; give an "
                    "https URL, or unset the variable if the server needs no key"
                )
        elif not self.key.read():
            raise ValueError(f"{self.base_url} needs a key: set {self.key.name} (to any word if it needs none)")

    def chat(
        self,
        messages: Sequence[tuple[str, str]],
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        seed: int | None = None,
        n: int = 1,
        sample: int = 0,
    ) -> Reply:
        """Send a request, waiting and retrying; see ``Chat``. Safe to call from several threads.

        Raises:
            ChatFailed: No reply after all tries.
        """
        asked = tuple((role, text) for role, text in messages)
        return self._ask(Chat(asked, temperature, max_tokens, seed, n, sample))

    def chat_all(
        self, chats: Sequence[Chat], tell: Callable[[int, int], None] | None = None
    ) -> list[Reply | ChatFailed]:
        """Send all requests, ``num_parallel`` at once; equal ones are sent once, a failure takes a reply's place.

        If interrupted, it waits for the requests in flight, so that their replies are kept too.

        Args:
            chats: What to ask.
            tell: Called with the number answered or failed, and the number in all.
        """
        self.down, self._in_a_row = "", {}
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
        key = chat.key(self.model, self.base_url)
        if (kept := self.cache.get(key)) is not None:
            return kept
        if self.cache.get(chat.key(self.model)) is not None and self._told.acquire(blocking=False):
            complain(
                f"{self.cache.path}: replies of an earlier version do not say which server's {self.model} gave them; "
                f"{self.base_url} is asked again"
            )
        if self.down or self._stop.is_set():
            raise ChatFailed(self.down or "interrupted")
        try:
            reply, about = self._until_answered(chat)
        except ChatFailed as failure:
            self._count(failure)
            raise
        self._in_a_row = {}
        asked = {name: value for name, value in asdict(chat).items() if name != "messages"}
        messages = [(role, self.key.mask(text)) for role, text in chat.messages]
        where = {"model": self.model, "endpoint": self.base_url}
        self.cache.add(key, reply, {**where, **about, "messages": messages, **asked})
        return reply

    def _count(self, failure: ChatFailed) -> None:
        """Stop sending requests if a failure indicates that more would fail."""
        self._in_a_row[failure.fault] = number = self._in_a_row.get(failure.fault, 0) + 1
        if number >= STOP_AFTER[failure.fault] and not self.down:
            times = f"; {number} requests in a row, so no more are made" if number > 1 else ""
            self.down = f"{failure}{times}"

    def _until_answered(self, chat: Chat) -> tuple[Reply, dict[str, Any]]:
        """Return a reply and the server's comment on it, after as many tries as necessary.

        Raises:
            ChatFailed: After all of them.
        """
        start = time.monotonic()
        for number in range(1, MAX_TRIES + 1):
            if self.down or self._stop.is_set():
                break
            try:
                return self._post(chat)
            except MayPass as fault:
                pause = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1)) * self._random.uniform(0.5, 1)
                pause = pause if fault.wait_s is None else fault.wait_s + pause * 0.1
                taken = time.monotonic() - start
                if pause > LONGEST_RETRY_AFTER_S:
                    raise ChatFailed(f"{fault} (the server asks to wait {pause:,.0f} s)", fault.fault) from None
                if number == MAX_TRIES or taken + pause > MAX_SECONDS:
                    raise ChatFailed(f"{fault} ({number} tries in {taken:,.0f} s)", fault.fault) from None
                self._stop.wait(pause)
        raise ChatFailed(self.down or "interrupted")

    def _post(self, chat: Chat) -> tuple[Reply, dict[str, Any]]:
        """Send one request; return the reply and the server's comment on it.

        Raises:
            MayPass: It may pass.
            ChatFailed: It will not.
        """
        content: dict[str, Any] = {"model": self.model, self._limit_name: chat.max_tokens}
        content["messages"] = [{"role": role, "content": text} for role, text in chat.messages]
        content.update({k: v for k, v in (("temperature", chat.temperature), ("seed", chat.seed)) if v is not None})
        if chat.n > 1:
            content["n"] = chat.n
        content.update(self._neutral if chat.is_neutral else {})
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions", json.dumps(content).encode(), self._headers()
        )
        try:
            body = read_body(*self._read(request))
            reply = read_reply(body, chat.n)
        except urllib.error.HTTPError as error:
            return self._refused(error, chat, content), {}
        except TimeoutError:
            raise MayPass(f"no answer in {self.timeout_s:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            # Without a connection, the other requests need not discover this one by one.
            reason = f"{self.host} cannot be reached: {self._clean(str(error.reason))}"
            raise MayPass(reason, fault="endpoint" if late else "fatal") from None
        except (OSError, http.client.HTTPException) as error:
            raise MayPass(f"the connection broke: {type(error).__name__}") from None
        except (MayPass, ChatFailed) as failure:
            failure.args = (f"{self._clean(str(failure))} (from {self.host})",)
            raise
        about = {"served_by": self._masked(body.get("model")), "usage": self._masked(body.get("usage"))}
        return reply._replace(texts=tuple(map(self.key.mask, reply.texts))), about

    def _refused(self, error: urllib.error.HTTPError, chat: Chat, content: dict[str, Any]) -> Reply:
        """Raise what a status other than 200 means, except for a reply without text."""
        try:
            said = error.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        error.close()
        where = f"{self.host}: {self._clean(said) or error.reason} (model {self.model!r}, key from {self.key.name})"
        if error.code in (400, 422) and NEUTRAL.keys() & content.keys() and any(name in said for name in NEUTRAL):
            self._leave_defaults()
            raise MayPass(f"{error.code} from {where}", wait_s=0.0)
        if error.code == 400 and "max_tokens" in content and "max_completion_tokens" in said:
            self._limit_name = "max_completion_tokens"  # newer OpenAI models only accept this name
            raise MayPass(f"400 from {where}", wait_s=0.0)
        meaning = read_status(error.code, said, where, error.headers.get("Retry-After"))
        if isinstance(meaning, Exception):
            raise meaning
        return Reply(meaning.texts * chat.n, meaning.complete * chat.n, meaning.missing * chat.n)

    def _leave_defaults(self) -> None:
        """Continue without ``NEUTRAL``, and warn once about the consequences."""
        if self._neutral and self._told_of_defaults.acquire(blocking=False):
            self._neutral = {}
            complain(
                f"{self.host} takes none of {', '.join(NEUTRAL)}: what it sets itself, such as by the model's "
                "generation_config.json, may change answers and scores"
            )

    def _read(self, request: urllib.request.Request) -> tuple[bytes, str]:
        """Read the whole body and its content type; the timeout covers all of it, so a slow server cannot hold us."""
        deadline, parts, size = time.monotonic() + self.timeout_s, [], 0
        with self._opener.open(request, timeout=self.timeout_s) as response:
            kind = response.headers.get("Content-Type", "")
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if size > MAX_REPLY_BYTES:
                    raise ChatFailed(f"the answer is longer than {MAX_REPLY_BYTES:,} bytes")
        return b"".join(parts), kind

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "sftlab"}
        if key := self.key.read():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ChatFailed(f"{self.key.name} holds characters that no key has", "fatal")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _masked(self, value: Any) -> Any:
        """Return JSON with the key masked in every text."""
        if isinstance(value, dict):
            return {self.key.mask(name): self._masked(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._masked(item) for item in value]
        return self.key.mask(value) if isinstance(value, str) else value

    def _clean(self, text: str) -> str:
        """Return a server's text on one line, shortened, and without credentials."""
        return " ".join(mask(self.key.mask(text), urls=True).split())[:300]


def is_nearby(host: str) -> bool:
    """Return whether a host is this machine or on a private network."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
