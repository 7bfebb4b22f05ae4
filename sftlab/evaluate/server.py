"""Answers from a server: problems in, one request for each turn of each sample, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat
from sftlab.evaluate.backend import Dialogue, dialogues
from sftlab.tasks.task import Answer, Problem, Sampling

_GROUP = 64  # problems sent to a server before their answers are yielded


class ServerModel:
    """Answers through any OpenAI-compatible server (vLLM and the like), which applies the model's own template.

    Args:
        client: The endpoint, with its cache and retries.
    """

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    @classmethod
    def at(cls, url: str, model: str, cache: Path | None = None) -> ServerModel:
        """Connect to the model of this name at an endpoint such as http://localhost:8000/v1."""
        return cls(ChatClient(url, model, cache=cache))

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer turn by turn, one request per turn and sample; an answer without text says why.

        Raises:
            ValueError: The endpoint gives no answers, or has stopped answering; earlier answers have been yielded.
        """
        self.client.require()
        every = dialogues(problems, sampling)
        num_replies, failure = 0, ""
        for start in range(0, len(every), _GROUP):
            group = waiting = every[start : start + _GROUP]
            unasked: list[Dialogue] = []
            while waiting:
                replies = self.client.chat_all([_chat(one, sampling.max_new_tokens) for one in waiting])
                for one, reply in zip(waiting, replies, strict=True):
                    if isinstance(reply, ChatFailed):
                        failure = failure or str(reply)
                        one.end(f"no reply: {reply}")
                        unasked += [one] if self.client.down else []
                    elif reply.why_missing:
                        num_replies += 1
                        one.end(reply.why_missing)
                    else:
                        num_replies += 1
                        one.add(reply.texts[0], reply.complete[0])
                waiting = [one for one in waiting if one.is_open] if not self.client.down else []
            if done := [one.answer() for one in group if one not in unasked and not one.is_open]:
                yield done
            if self.client.down or (failure and not num_replies and start + _GROUP >= len(every)):
                kept = "the same call goes on after what was answered" if num_replies else "nothing was answered"
                raise ValueError(f"{self.client.base_url}: {self.client.down or failure}; {kept}")


def _chat(one: Dialogue, max_new_tokens: int) -> Chat:
    messages = tuple((turn.role, turn.text) for turn in one.turns())
    seed = one.seed % 2**31
    return Chat(messages, one.temperature, max_new_tokens, seed=seed, sample=one.sample, is_neutral=True)
