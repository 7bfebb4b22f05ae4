"""Conversations are fitted by tasks on the nodes of a Ray cluster, where the user names one.

    this process: read, ask --task--> a node: render, tokenise, fit --answer--> this process: number, write

The same as the processes of ``workers``, elsewhere: who asks reads, numbers and writes alone, so that an entry of the
cache is the same byte for byte. A node needs sftlab and no file; a task that dies with its node is run again by Ray.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

from sftlab import __version__
from sftlab.data.fitter import Fitted
from sftlab.data.workers import ALONE, answer, loaded
from sftlab.ray_cluster import join
from sftlab.screen import complain

_MOST_TASKS = 1024  # at once
_MOST_RETRIES = 3  # of a task whose process or node has died
_TELL_AFTER_S = 60.0  # without an answer; a task takes less than one
_NO_ANSWER = f"has not answered for {_TELL_AFTER_S:g} s; other work may have its cores. Waiting"
_UNKNOWN = "cannot import a class of yours that the data needs (PYTHONPATH of its nodes); this process does such work"
_fitters: dict[str, Any] = {}  # on a node: the last one, by its hash
_in_use: ContextVar[Cluster | None] = ContextVar("in_use", default=None)


@contextmanager
def prepared_on(address: str, option: str) -> Iterator[None]:
    """What is prepared meanwhile is fitted on a Ray cluster; as elsewhere where ``address`` is empty.

    Args:
        address: ``auto``, ``host:6379`` or ``ray://host:10001``.
        option: Where the user has named it, for messages.
    """
    if not address:
        yield
        return
    cluster = Cluster(address, option)
    before = _in_use.set(cluster)
    try:
        yield
    finally:
        _in_use.reset(before)
        cluster.leave()


def cluster_in_use() -> Cluster | None:
    """The cluster that fits what is prepared now, None where this machine does."""
    return _in_use.get()


class Cluster:
    """A Ray cluster, joined as soon as there is something to do; one that the process has joined already is kept.

    Args:
        address: As of ``prepared_on``.
        option: As of ``prepared_on``.
    """

    def __init__(self, address: str, option: str) -> None:
        self.address, self._option, self._told = address, option, set[str]()
        self._ray: Any = None
        self._is_mine = False

    def workers(self, setup: bytes) -> list[ClusterWorker]:
        """One for each core of the cluster.

        Args:
            setup: The fitter, pickled.

        Raises:
            ValueError: The cluster cannot be joined.
        """
        if self._ray is None:
            known = sys.modules.get("ray")
            self._is_mine = known is None or not known.is_initialized()
            self._ray = join(self.address, self._option) if self._is_mine else known
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        about = [self._ray.put(setup)], blake2b(setup, digest_size=16).hexdigest(), _versions()
        task = self._ray.remote(num_cpus=1, max_retries=_MOST_RETRIES, scheduling_strategy="SPREAD")(fitted_there)
        return [ClusterWorker(self, self._ray, task, about) for _ in range(max(1, min(cores, _MOST_TASKS)))]

    def tell_once(self, words: str) -> None:
        """Say what is not as the user would have it."""
        if words not in self._told:
            self._told.add(words)
            complain(f"preparing data: the Ray cluster at {self.address!r} {words}")

    def leave(self) -> None:
        """Leave it, if nobody else had joined it."""
        if self._is_mine and self._ray is not None:
            self._ray.shutdown()


class ClusterWorker:
    """Asks for a task and waits for its answer, asked by one thread at a time.

    Args:
        cluster: That it asks.
        ray: The module.
        task: ``fitted_there``.
        about: Its first arguments.
    """

    def __init__(self, cluster: Cluster, ray: Any, task: Any, about: tuple[Any, ...]) -> None:
        self._cluster, self._ray, self._task, self._about = cluster, ray, task, about
        self._running: Any = None

    def ask(self, asked: bytes) -> list[Fitted] | None:
        """What became of some conversations; None where a node cannot know their classes or the fitter's.

        Raises:
            ValueError: As of the fitter, or the task has died as often as Ray runs it.
        """
        self._running = self._task.remote(*self._about, asked)
        try:
            if not self._ray.wait([self._running], timeout=_TELL_AFTER_S)[0]:
                self._cluster.tell_once(_NO_ANSWER)
            found, error = pickle.loads(self._ray.get(self._running))
        except self._ray.exceptions.RayError as failed:
            last = str(failed).strip().splitlines()[-1:]
            raise ValueError(
                f"preparing data: a task on the Ray cluster at {self._cluster.address!r} failed: "
                f"{type(failed).__name__}: {' '.join(last)}; what was prepared before stays in the cache"
            ) from None
        finally:
            self._running = None
        if error is not None:
            raise error
        if found is None:
            self._cluster.tell_once(_UNKNOWN)
        return found

    def kill(self) -> None:
        """End what it has asked for; nobody waits for it any more."""
        if (running := self._running) is not None:
            self._ray.cancel(running, force=True)


def fitted_there(setup: Sequence[Any], name: str, wanted: Mapping[str, str], asked: bytes) -> bytes:
    """A task: fit some conversations on a node; what ``workers.answer`` gives.

    Args:
        setup: The fitter, pickled and put by the one who asks.
        name: Its hash.
        wanted: The versions that the one who asks has.
        asked: The conversations, pickled.
    """
    import ray

    if (here := _versions()) != wanted:
        apart = ", ".join(f"{key} {here[key]} (not {wanted[key]})" for key in wanted if here[key] != wanted[key])
        node = ray.util.get_node_ip_address()
        return pickle.dumps((None, ValueError(f"preparing data: node {node} of the Ray cluster has {apart}")))
    if name not in _fitters:
        os.environ.update(ALONE)
        _fitters.clear()
        _fitters[name] = loaded(ray.get(setup[0]))
    return answer(_fitters[name], loaded(asked))


def _versions() -> dict[str, str]:
    """Of what decides what comes out."""
    return {"sftlab": __version__, **{name: version(name) for name in ("tokenizers", "jinja2")}}
