"""Tags by a language model: a Hugging Face model in this process, or any OpenAI-compatible endpoint.

The prompt has the form of InsTag's (arXiv 2308.07074), reworded: one query, a JSON list of tags and explanations
as the answer. A model that was trained on other words gets them from a file. What comes back is read in this order:
JSON (alone, in a code block or amid prose): a list, one object, or an object with the list; every ``"tag": "..."``
of broken JSON, where that finds more; else it is unread, which is counted and drops nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sftlab.analysis.tags.rules import Found
from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat, Reply, ReplyCache
from sftlab.evaluate.folder import weights_hash
from sftlab.tasks.task import Problem, Sampling
from sftlab.tasks.thinking import without_thinking

if TYPE_CHECKING:
    from sftlab.evaluate.local import LocalModel

PROMPT = (
    "Name the intentions behind the user query below as tags, and explain each tag in one sentence. Answer with "
    'nothing but a JSON list in this format: [{"tag": str, "explanation": str}].\nUser query: {query}'
)
PROMPT_NAME = "intentions@1"
"""Name and version of the wording."""
MAX_QUERY_TOKENS, MAX_NEW_TOKENS = 2048, 512
CHARACTERS_A_TOKEN = 4
"""A server's tokenizer is not known: its queries are cut at so many characters for each token."""
_FENCED = re.compile(r"```(?:json)?\s*(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r'"tag"\s*:\s*"((?:[^"\\]|\\.)*)"(?:\s*,\s*"explanation"\s*:\s*"((?:[^"\\]|\\.)*)")?')


def read_tags(text: str) -> list[Found] | None:
    """Return the tags of a model's answer, in lower case; None if no tags can be read."""
    fenced = _FENCED.search(text)
    read = _from_json(fenced[1]) if fenced else None
    read = _from_json(text) if read is None else read
    rescued = [Found(_clean(_unescaped(tag)), _unescaped(why)) for tag, why in _TAG.findall(text)]
    rescued = [one for one in rescued if one.tag]
    return rescued if len(rescued) > len(read or ()) else read


def _from_json(text: str) -> list[Found] | None:
    """Return tags of the JSON value that begins at a text's first bracket."""
    starts = [position for bracket in "[{" if (position := text.find(bracket)) >= 0]
    try:
        return _tags_of(json.JSONDecoder().raw_decode(text[min(starts) :])[0]) if starts else None
    except (ValueError, RecursionError):
        return None


def _tags_of(value: Any) -> list[Found] | None:
    """Return the tags of a list of objects or texts, of one object, or of an object that holds such a list."""
    if isinstance(value, dict) and isinstance(value.get("tag"), str):
        value = [value]
    elif isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        return None
    found = []
    for item in value:
        tag = item.get("tag") if isinstance(item, dict) else item
        why = item.get("explanation") if isinstance(item, dict) else ""
        if not isinstance(tag, str):
            return None
        if clean := _clean(tag):
            found.append(Found(clean, why if isinstance(why, str) else ""))
    return found


def _clean(tag: str) -> str:
    return " ".join(tag.lower().split())


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


class Chats(Protocol):
    """Answers chats; ``cut`` shortens a query to what it accepts, and ``limit`` states that length."""

    limit: str

    def cut(self, query: str) -> str:
        """Return the query, or as much of its beginning as fits."""

    def chat_all(
        self, chats: Sequence[Chat], tell: Callable[[int, int], None] | None = None
    ) -> list[Reply | ChatFailed]:
        """Return a reply to each chat; a failure takes its place."""


class ServerChats:
    """An OpenAI-compatible endpoint with its cache and retries."""

    limit = f"{MAX_QUERY_TOKENS * CHARACTERS_A_TOKEN:,} characters (about {MAX_QUERY_TOKENS:,} tokens)"

    def __init__(self, client: ChatClient) -> None:
        client.require()
        self.client, self.chat_all = client, client.chat_all

    def cut(self, query: str) -> str:
        """Return the first 2,048 x 4 characters."""
        return query[: MAX_QUERY_TOKENS * CHARACTERS_A_TOKEN]


class LocalChats:
    """A Hugging Face model in this process; its replies are kept in a file.

    Args:
        model: Answers.
        cache: What it has answered before, by ``Chat.key(name)``.
        name: The model's name with what its weights are.
    """

    def __init__(self, model: LocalModel, cache: ReplyCache, name: str) -> None:
        self.model, self.cache, self.name = model, cache, name
        room = model.model.config.max_position_embeddings - MAX_NEW_TOKENS - 128  # 128: prompt and template
        self.max_query_tokens = max(16, min(MAX_QUERY_TOKENS, room))
        self.limit = f"{self.max_query_tokens:,} tokens"

    def cut(self, query: str) -> str:
        """Return the first 2,048 tokens, or fewer if the model has no room for them."""
        encoding = self.model.encoder.tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)
        offsets: Any = encoding["offset_mapping"]
        return query[: offsets[self.max_query_tokens - 1][1]] if len(offsets) > self.max_query_tokens else query

    def chat_all(
        self, chats: Sequence[Chat], tell: Callable[[int, int], None] | None = None
    ) -> list[Reply | ChatFailed]:
        """Return greedy answers to the chats' last messages, each stored as soon as it exists."""
        keys = [chat.key(self.name) for chat in chats]
        asked = {key: chat for key, chat in zip(keys, chats, strict=True) if self.cache.get(key) is None}
        problems = [Problem(key, (chat.messages[-1][1],)) for key, chat in asked.items()]
        for group in self.model.answer(problems, Sampling(max_new_tokens=MAX_NEW_TOKENS)):
            for answer in group:
                about = {"model": self.name, "messages": asked[answer.uid].messages}
                self.cache.add(answer.uid, Reply(answer.texts, answer.complete), about)
        replies = [self.cache.get(key) for key in keys]
        return [reply if reply is not None else ChatFailed("no answer") for reply in replies]


class LLMTagger:
    """Asks a language model for the tags of each query.

    Args:
        chats: Answers.
        model: The model's name.
        prompt: With ``{query}`` where the query goes; our own by default.
    """

    def __init__(self, chats: Chats, model: str, prompt: str = PROMPT) -> None:
        if prompt.count("{query}") != 1:
            raise ValueError("--prompt: the text must hold {query} once, where the query goes")
        wording = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
        self.name = f"{model}, prompt {PROMPT_NAME if prompt == PROMPT else wording}"
        self.chats, self.prompt = chats, prompt
        self.num_cut = self.num_unread = self.num_failed = 0
        self._failure = ""

    def tag(self, queries: Sequence[str]) -> list[list[Found] | None]:
        """Return the tags of each query; None if there was no answer or it could not be read.

        Raises:
            ValueError: Not one of several queries was answered.
        """
        cut = [self.chats.cut(query) for query in queries]
        self.num_cut += sum(short != query for short, query in zip(cut, queries, strict=True))
        asked = [Chat((("user", self.prompt.replace("{query}", query)),), 0.0, MAX_NEW_TOKENS) for query in cut]
        replies = self.chats.chat_all(asked)
        lacking = [str(reply) if isinstance(reply, ChatFailed) else reply.why_missing for reply in replies]
        failures = [why for why in lacking if why]
        if failures and len(failures) == len(replies):
            raise ValueError(f"--tagger: no answer at all: {failures[0]}; the same call continues from here")
        found = [
            None if isinstance(reply, ChatFailed) or why else read_tags(without_thinking(reply.texts[0]))
            for reply, why in zip(replies, lacking, strict=True)
        ]
        self.num_failed += len(failures)
        self.num_unread += sum(one is None for one in found) - len(failures)
        self._failure = failures[0] if failures else self._failure
        return found

    def notes(self) -> list[str]:
        """Return how many queries were cut, not answered or not understood."""
        notes = []
        if self.num_cut:
            notes.append(f"{self.num_cut:,} queries were longer than {self.chats.limit} and were cut there.")
        if self.num_unread:
            notes.append(f"{self.num_unread:,} answers could not be read as tags.")
        if self.num_failed:
            notes.append(f"{self.num_failed:,} queries got no answer ({self._failure}); the same call asks them again.")
        return notes


def model_identity(name: str, model: LocalModel) -> str:
    """Return a model's name with what determines its answers: its files (for a hub id, its commit) and its template."""
    files = weights_hash(Path(name)) if Path(name).is_dir() else getattr(model.model.config, "_commit_hash", None)
    return f"{name} {files} {model.encoder.fingerprint()}"
