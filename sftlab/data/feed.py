"""Batches from a plan and its examples: one loader for the whole run, whose only state is the optimizer step.

A batch is flat: the examples of its rows one after another, without padding.

    rows        |------ row 0 ------|----- row 1 -----|
    examples    a a a a b b b         c c c c c c
    ids_T       5 3 8 2 5 4 2         5 3 9 9 7 2
    positions_T 0 1 2 3 0 1 2         0 1 2 3 4 5
    example_T   0 0 0 0 1 1 1         2 2 2 2 2 2
    supervised      x x   x x             x x x x        (the token itself is trained)
    keep_K        1 2   4 5             8 9 ...          (where its prediction stands: one earlier)
    target_K      8 2   4 2             ...              (what is predicted there)

Legend: T tokens, K supervised tokens, D examples, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from sftlab.plan.plan import Plan

_ENDLESS = 2**40  # micro-batches of a plan whose end is unknown


class ExampleTable(Protocol):
    """The examples of an ability, as the feed needs them."""

    def ids(self, index: int) -> np.ndarray:
        """Token ids of one example."""

    def mask(self, index: int) -> np.ndarray:
        """Which of its tokens are supervised."""


@dataclass
class Batch:
    """One micro-batch of one rank; see the drawing above.

    Attributes:
        step: The optimizer step that it is part of.
        ids_T: Token ids.
        positions_T: Position ids, from 0 in each example.
        lengths_D: Tokens of each example.
        row_lengths_R: Tokens of each row.
        keep_K: Positions whose next token is supervised; at least one.
        target_K: These next tokens.
        example_K: Index of the example that each of them belongs to.
        ability_D: Ability number of each example.
        supervised_D: Supervised tokens of each example; 0 marks filler, which has no weight in the loss.
        number_D: Number of each example in the plan; -1 for filler.
    """

    step: int
    ids_T: torch.Tensor
    positions_T: torch.Tensor
    lengths_D: list[int]
    row_lengths_R: list[int]
    keep_K: torch.Tensor
    target_K: torch.Tensor
    example_K: torch.Tensor
    ability_D: torch.Tensor
    supervised_D: torch.Tensor
    number_D: list[int]

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in self._tensors()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        return replace(self, **{name: t.pin_memory() for name, t in self._tensors()})

    def _tensors(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self).items() if torch.is_tensor(value)]


def collate(step: int, rows: list[np.ndarray], plan: Plan, tables: Mapping[str, ExampleTable]) -> Batch:
    """Concatenate the examples of some rows of a plan into a batch.

    Without rows (in a step with fewer rows than micro-batches) the batch is one filler token of weight 0, so that every
    rank runs the same number of forward passes.

    Args:
        step: The optimizer step.
        rows: Example numbers of each row.
        plan: The plan.
        tables: The examples of each ability.
    """
    ids, keep, target, owner, supervised = [], [], [], [], []
    numbers = [int(n) for row in rows for n in row]
    start = 0
    for position, number in enumerate(numbers):
        table, index = tables[plan.abilities[plan.ability_N[number]]], int(plan.index_N[number])
        ids_L, mask_L = table.ids(index), table.mask(index)
        keep_L = np.flatnonzero(mask_L[1:])
        ids.append(ids_L)
        keep.append(keep_L + start)
        target.append(ids_L[keep_L + 1])
        owner.append(np.full(len(keep_L), position))
        supervised.append(len(keep_L))
        start += len(ids_L)
    if not numbers:
        zero = np.zeros(1, dtype=np.int64)
        ids, keep, target, owner, supervised = [zero], [zero], [zero], [zero], [0]
    lengths = [len(ids_L) for ids_L in ids]

    def tensor(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        step=step,
        ids_T=tensor(ids),
        positions_T=tensor([np.arange(length) for length in lengths]),
        lengths_D=lengths,
        row_lengths_R=[int(plan.lengths_N[row].sum()) for row in rows] or [1],
        keep_K=tensor(keep),
        target_K=tensor(target),
        example_K=tensor(owner),
        ability_D=torch.from_numpy(plan.ability_N[numbers].astype(np.int64)) if numbers else torch.zeros(1).long(),
        supervised_D=torch.tensor(supervised),
        number_D=numbers or [-1],
    )


def share_of_rows(trainer: Any) -> tuple[int, int]:
    """Return which share of a step's rows a process gets, of how many: one tensor parallel group shares its rows."""
    size = getattr(trainer.strategy, "tensor_parallel_size", 1)
    return trainer.global_rank // size, trainer.world_size // size


class _MicroBatches(Dataset):
    """Micro-batch m of a rank: every ``chunks``-th row of step m // accumulate, from an offset of its own."""

    def __init__(self, plan: Plan, tables: Mapping[str, ExampleTable], accumulate: int, rank: int, world: int):
        self.plan, self.tables, self.accumulate = plan, tables, accumulate
        self.rank, self.chunks, self.world = rank, accumulate * world, world

    def __len__(self) -> int:
        return self.plan.num_compiled_steps * self.accumulate

    def __getitem__(self, micro_batch: int) -> Batch:
        step, part = divmod(micro_batch, self.accumulate)
        rows = self.plan.rows(step)
        return collate(step, rows[part * self.world + self.rank :: self.chunks], self.plan, self.tables)


class _InOrder:
    """Sampler: 0, 1, 2 ... from ``start``; the offset is used up by one iteration."""

    def __init__(self, dataset: _MicroBatches):
        self.dataset, self.start = dataset, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        # A generator, so that the offset is used up by the first number drawn: loaders with workers call iter() twice.
        start, self.start = self.start, 0
        yield from range(start, len(self.dataset))


class PlanLoader(DataLoader):
    """Loads the micro-batches of a plan for one rank; resumable at any optimizer step.

    Batches depend only on the plan, ``accumulate``, ``rank`` and ``world``, never on the number of workers. Together,
    the ranks and micro-batches of a step contain exactly the plan's rows of that step. The state is the number of
    optimizer steps, so that a run may resume with other memory settings. The plan may grow during iteration.

    Args:
        plan: The plan.
        tables: The examples of each ability.
        accumulate: Micro-batches per optimizer step.
        rank: Rank of this process.
        world: Number of ranks.
        options: Arguments of ``DataLoader``.
    """

    def __init__(
        self,
        plan: Plan,
        tables: Mapping[str, ExampleTable],
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> None:
        self.plan, self.accumulate, self._handed_out = plan, accumulate, 0
        dataset = _MicroBatches(plan, tables, accumulate, rank, world)
        # A generator of its own: otherwise every iteration draws from the global one, and dropout is not reproducible.
        options = {"generator": torch.Generator(), **options}
        super().__init__(dataset, batch_size=None, sampler=_InOrder(dataset), **options)

    def __len__(self) -> int:
        """Number of micro-batches of the whole plan, also after a resume; practically infinite for an open plan."""
        return _ENDLESS if self.plan.is_open else self.plan.num_steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield micro-batches, counting them in this process, so that prefetching workers do not matter."""
        self._handed_out = self.sampler.start  # type: ignore[attr-defined]
        while self._handed_out < len(self.dataset):  # type: ignore[arg-type]
            segments = self.plan.segments
            self.sampler.start = self._handed_out  # type: ignore[attr-defined]
            for batch in self._loaded():
                self._handed_out += 1
                yield batch
                if self.plan.segments is not segments:  # workers have the old plan
                    break

    def _loaded(self) -> Iterator[Batch]:
        """Yield what workers, or this process, have loaded; a worker's death is reported only here.

        Raises:
            RuntimeError: A worker has died.
        """
        # Pretend that torch's signal handler is installed: it raises wherever this process happens to be, even inside a
        # library, where the error is lost. The loader itself checks every few seconds whether its workers are alive.
        signal_handling._SIGCHLD_handler_set = True
        try:
            yield from super().__iter__()
        except (EOFError, OSError) as error:
            if not self.num_workers or str(error).startswith("Caught "):  # the error that the worker itself raised
                raise
            raise RuntimeError(f"DataLoader worker (pid unknown) exited unexpectedly ({error})") from error

    def state_dict(self) -> dict[str, int]:
        """Number of optimizer steps whose micro-batches have all been yielded."""
        return {"step": self._handed_out // self.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last complete step; at the end of the plan nothing is left."""
        self.sampler.start = self._handed_out = state["step"] * self.accumulate  # type: ignore[attr-defined]
