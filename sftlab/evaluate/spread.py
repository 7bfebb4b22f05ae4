"""Distributed answering: rank 0 distributes the problems, and each rank answers its part with its own model.

    rank 0   run a task:  problems -> parts -> own part  -> all answers      grade      ... -> over
    rank 1                            part  -> its part  -^              (waits)              <- over

An answer does not depend on its batch, so the answers equal those of one process. Ranks that do not see the model's
folder, on a node without the disk, leave their part to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from sftlab.evaluate.backend import Backend
from sftlab.evaluate.engine import running_engine
from sftlab.evaluate.local import LocalModel
from sftlab.tasks.task import Answer, Problem, Sampling

_BATCHES = 4  # problems per rank and round
_LONGEST = timedelta(days=7)  # how long ranks wait: a judge may be slow, and NCCL's own barrier would time out


@contextmanager
def first_rank_asks(folder: Path, batch_size: int, device: str, engine: str = "") -> Iterator[Backend | None]:
    """On rank 0, yield a model that all ranks answer for; on the others, yield None once rank 0 is done.

    Args:
        folder: The model, a Hugging Face folder.
        batch_size: Number of prompts that a rank decodes together.
        device: This rank's device.
        engine: Command of an engine that answers instead of the ranks.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        with running_engine(engine, folder) if engine else nullcontext() as asked:
            yield asked or LocalModel.from_folder(folder, batch_size, device)
        return
    group = distributed.new_group(backend="gloo", timeout=_LONGEST)  # connects now, so that network errors appear here
    rank, seen = distributed.get_rank(), [False] * distributed.get_world_size()
    distributed.all_gather_object(seen, folder.is_dir(), group)
    if rank == 0:
        with running_engine(engine, folder) if engine else nullcontext() as asked:
            yield asked or SpreadModel.over(group, seen, folder, batch_size, device)
        distributed.broadcast_object_list([None, None], 0, group)
    else:
        _follow(folder, batch_size, device, group)
        yield None
    distributed.destroy_process_group(group)


@contextmanager
def first_rank_works() -> Iterator[None]:
    """Make the other ranks wait until rank 0 has finished the block, however long that takes."""
    from torch import distributed

    yield
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        group = distributed.new_group(backend="gloo", timeout=_LONGEST)
        distributed.barrier(group)
        distributed.destroy_process_group(group)


class SpreadModel(LocalModel):
    """A model in this process, with copies on other ranks.

    Attributes:
        group: All ranks.
        ranks: The ranks that answer.
    """

    group: Any = None
    ranks: Sequence[int] = (0,)

    @classmethod
    def over(cls, group: Any, seen: Sequence[bool], folder: Path, batch_size: int, device: str) -> SpreadModel:
        """Create the model for those ranks of a group that see its folder."""
        model = cls.from_folder(folder, batch_size, device)
        assert isinstance(model, SpreadModel)
        model.group, model.ranks = group, [rank for rank, sees in enumerate(seen) if sees]
        return model

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer a part here and the rest on other ranks, in rounds."""
        at_once = max(1, _BATCHES * self.batch_size // sampling.num_samples) * len(self.ranks)
        for start in range(0, len(problems), at_once):
            some = problems[start : start + at_once]
            parts = {rank: some[place :: len(self.ranks)] for place, rank in enumerate(self.ranks)}
            yield list(chain(*_exchange(self.group, [parts, sampling], super().answer) or ()))


def _follow(folder: Path, batch_size: int, device: str, group: Any) -> None:
    """Answer what rank 0 distributes, until it is done."""
    model: LocalModel | None = None

    def answer(problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        nonlocal model
        model = model or LocalModel.from_folder(folder, batch_size, device)
        return model.answer(problems, sampling)

    while _exchange(group, [None, None], answer) is not None:
        pass


def _exchange(group: Any, asked: list[Any], answer: Any) -> list[list[Answer]] | None:
    """Run one round: send rank 0's ``asked`` to all, and all answers to rank 0; None when there are no more rounds."""
    from torch import distributed

    distributed.broadcast_object_list(asked, 0, group)
    parts, sampling = asked
    if parts is None:
        return None
    rank = distributed.get_rank()
    mine = list(chain(*answer(parts[rank], sampling))) if parts.get(rank) else []
    gathered: list[list[Answer]] = [[]] * distributed.get_world_size()
    distributed.gather_object(mine, gathered if rank == 0 else None, 0, group)
    return gathered
