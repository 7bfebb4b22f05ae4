"""Fits conversations in tasks on the nodes of a Ray cluster, if the user names one.

    this process: read, ask --task--> a node: render, tokenise, fit --answer--> this process: number, write

Like the processes of ``workers``, but on other machines: this process alone reads, numbers and writes, so that cache
entries are equal byte for byte. A node needs sftlab and no files; Ray reruns a task that dies with its node.
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

_MOST_TASKS = 1024  # tasks in flight
_MOST_RETRIES = 3  # retries of a task whose process or node died
_TELL_AFTER_S = 60.0  # seconds without an answer; a task takes less than one
_NO_ANSWER = f"has not answered for {_TELL_AFTER_S:g} s; other work may have its cores. Waiting"
_UNKNOWN = "cannot import a class of yours that the data needs (PYTHONPATH of its nodes); this process does that work"
_fitters: dict[str, Any] = {}  # on a node: the last fitter, by its hash
_in_use: ContextVar[Cluster | None] = ContextVar("in_use", default=None)


@contextmanager
def prepared_on(address: str, option: str) -> Iterator[None]:
    """Fit everything prepared inside the block on a Ray cluster; on this machine if ``address`` is empty.

    Args:
        address: ``auto``, ``host:6379`` or ``ray://host:10001``.
        option: Where the user named it, for messages.
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
    """Return the cluster that fits conversations now; None if this machine does."""
    return _in_use.get()


class Cluster:
    """A Ray cluster, joined when there is work; a connection that the process already has is reused.

    Args:
        address: See ``prepared_on``.
        option: See ``prepared_on``.
    """

    def __init__(self, address: str, option: str) -> None:
        self.address, self._option, self._told = address, option, set[str]()
        self._ray: Any = None
        self._is_mine = False

    def workers(self, setup: bytes) -> list[ClusterWorker]:
        """Create one worker for each core of the cluster.

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
        """Print a warning once."""
        if words not in self._told:
            self._told.add(words)
            complain(f"preparing data: the Ray cluster at {self.address!r} {words}")

    def leave(self) -> None:
        """Disconnect, unless the process was connected before."""
        if self._is_mine and self._ray is not None:
            self._ray.shutdown()


class ClusterWorker:
    """Sends tasks to the cluster and waits for their answers; used by one thread at a time.

    Args:
        cluster: The cluster.
        ray: The Ray module.
        task: ``fitted_there``.
        about: Its first arguments.
    """

    def __init__(self, cluster: Cluster, ray: Any, task: Any, about: tuple[Any, ...]) -> None:
        self._cluster, self._ray, self._task, self._about = cluster, ray, task, about
        self._running: Any = None

    def ask(self, asked: bytes) -> list[Fitted] | None:
        """Return the pickled results of some conversations; None if a node cannot import their classes or the fitter's.

        Raises:
            ValueError: The fitter raised it, or the task died in all of Ray's attempts.
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
        """Cancel the running task."""
        if (running := self._running) is not None:
            self._ray.cancel(running, force=True)


def fitted_there(setup: Sequence[Any], name: str, wanted: Mapping[str, str], asked: bytes) -> bytes:
    """Fit some conversations on a node, as a Ray task; returns what ``workers.answer`` returns.

    Args:
        setup: The pickled fitter.
        name: Its hash.
        wanted: The versions in the asking process.
        asked: The pickled conversations.
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
    """Return the versions of everything that affects the result."""
    return {"sftlab": __version__, **{name: version(name) for name in ("tokenizers", "jinja2")}}
