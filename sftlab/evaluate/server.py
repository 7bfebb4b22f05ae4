"""Answers from a server: problems in, one request for each turn of each sample, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat
from sftlab.evaluate.backend import Dialogue, dialogues
from sftlab.tasks.task import Answer, Problem, Sampling

_GROUP = 64  # problems asked of a server before their answers are handed on


class ServerModel:
    """Answers through any OpenAI-compatible server (vLLM and the like), which applies the model's own template.

    Args:
        client: The endpoint, with its cache and retries.
    """

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    @classmethod
    def at(cls, url: str, model: str, cache: Path | None = None) -> ServerModel:
        """The model of that name at an endpoint such as http://localhost:8000/v1."""
        return cls(ChatClient(url, model, cache=cache))

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer turn by turn, one request per turn and sample.

        Raises:
            ValueError: Some requests failed after all tries; what was answered has been handed on before.
        """
        self.client.require_key()
        failed: list[str] = []
        every = dialogues(problems, sampling)
        for start in range(0, len(every), _GROUP):
            group = waiting = every[start : start + _GROUP]
            while waiting:
                replies = self.client.chat_all([_chat(one, sampling.max_new_tokens) for one in waiting])
                for one, reply in zip(waiting, replies, strict=True):
                    if isinstance(reply, ChatFailed):
                        failed.append(f"{one.problem.uid}: {reply}")
                    else:
                        one.add(reply.texts[0], reply.complete[0])
                answered = [
                    one for one, reply in zip(waiting, replies, strict=True) if not isinstance(reply, ChatFailed)
                ]
                waiting = [one for one in answered if one.is_open]
            done = [one.answer() for one in group if not one.is_open]
            if done:
                yield done
        if failed:
            raise ValueError(f"{len(failed)} answers could not be had ({failed[0]}); the same call asks for them again")


def _chat(one: Dialogue, max_new_tokens: int) -> Chat:
    messages = tuple((turn.role, turn.text) for turn in one.turns())
    return Chat(messages, one.temperature, max_new_tokens, seed=one.seed % 2**31, sample=one.sample)
