"""The data of one ability: records, reader, validation split, fraction; usable alone or in a mixture."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from sftlab.bounds import within
from sftlab.data.conversation import Audit, Conversation
from sftlab.data.droplist import DropList
from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.feed import PlanLoader, share_of_rows
from sftlab.data.readers import AlpacaReader, MathReader, MessagesReader, Reader, ShareGPTReader
from sftlab.data.seed import global_seed
from sftlab.data.source import LAB, source_of
from sftlab.data.split import Part, held_out
from sftlab.data.template import checked_system, get_template
from sftlab.fingerprint import digest
from sftlab.lab.options import LabOptions
from sftlab.plan.compile import one_pass
from sftlab.plan.plan import Plan
from sftlab.plan.policy import MixturePolicy, Proportional
from sftlab.plan.pool import Pool, rank
from sftlab.plan.stage import StepSize
from sftlab.plan.uids import index_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VAL_ROWS = 8  # packed rows of a validation micro-batch


class PlannedData(LightningDataModule):
    """Base of the datamodules, whose examples a plan orders. A schedule calls ``load``, ``pools``, then ``follow``.

    Args:
        template: Name of the conversation template.
        max_length: Tokens in a packed row.
        overlong: What to do with longer conversations: split, truncate or drop.
        batch: Size of an optimizer step: {examples: N} or {rows: N}.
        num_workers: Processes that prepare batches.
        seed: Selects subsets and orders examples; None uses that of seed_everything.
        packing: Whether examples share rows; false gives each a row of its own, for architectures that mix them up.
    """

    policy: MixturePolicy = Proportional()

    def __init__(
        self,
        template: str = "vicuna_v1.1",
        max_length: int = 2048,
        overlong: str = "split",
        batch: dict[str, int] = {"examples": 128},  # noqa: B006 - never changed
        num_workers: int = 0,
        seed: int | None = None,
        packing: bool = True,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(batch) - {"examples", "rows"}):
            raise ValueError(f"data.batch: {unknown} is not known; give examples or rows")
        within("data.max_length", max_length, 2, 10**8, is_whole=True)
        within("data.num_workers", num_workers, 0, 1024, is_whole=True)
        if seed is not None:
            within("data.seed", seed, 0, 2**63, is_whole=True)
        self.template, self.max_length, self.overlong, self.packing = template, max_length, overlong, packing
        self.batch, self.num_workers, self._seed = StepSize(**batch), num_workers, seed
        self.plan_note = ""  # where a large plan came from; set by the schedule
        self.limit_notes: list[str] = []  # what in the data is near a limit of the model; set by the schedule
        self.run_seed: int | None = None  # set if a config is only planned
        self.encoder: Encoder | None = None
        self.plan: Plan | None = None

    @property
    @abstractmethod
    def abilities(self) -> dict[str, AbilityData]:
        """The abilities by name."""

    @property
    def seed(self) -> int:
        """The seed that selects subsets and orders examples."""
        return self._seed if self._seed is not None else self.run_seed if self.run_seed is not None else global_seed()

    def load(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Render and tokenise the examples of every ability, or find them in the cache."""
        self.encoder = Encoder(tokenizer, get_template(self.template, tokenizer))
        abilities = list(self.abilities.values())
        for ability in abilities:
            ability.load_examples(self.encoder, self.max_length, self.overlong)
        for ability, held_out_N in zip(abilities, held_out([ability.part() for ability in abilities]), strict=True):
            ability.hold_out(held_out_N)

    def pools(self) -> list[Pool]:
        """Return the training examples of each ability, ranked, with its fraction applied."""
        return [ability.pool(self.seed) for ability in self.abilities.values()]

    def audits(self) -> dict[str, dict[str, int]]:
        """Return how many records were repaired, truncated, split or dropped, by ability and cause."""
        return {name: ability.audit_counts() for name, ability in self.abilities.items()}

    def audit_places(self) -> dict[str, dict[str, str]]:
        """Return the first of these records as text, by ability and cause."""
        return {name: ability.first_places() for name, ability in self.abilities.items()}

    def notes(self) -> list[str]:
        """Return notes on the data for the user: what is held out and what is left out."""
        noted = [ability for ability in self.abilities.values() if not ability.is_declared]
        counts = [f"{ability.name} {ability.num_held_out:,}" for ability in noted if ability.val_fraction]
        return [
            *([f"Held out for validation: {', '.join(counts)} examples."] if counts else []),
            *(note for ability in self.abilities.values() for note in ability.notes()),
            *self.limit_notes,
            *([self.plan_note] if self.plan_note else []),
        ]

    def identity(self) -> dict[str, str]:
        """Return hashes and values that determine the data, by name; those of a resumed run must be equal."""
        parts = {f"data of {name}": ability.content_hash() for name, ability in self.abilities.items()}
        return {**parts, "seed": str(self.seed), "batch": str(self.batch), "max_length": str(self.max_length)}

    def follow(self, plan: Plan) -> None:
        """Serve the examples in the order of this plan."""
        self.plan = plan

    def train_dataloader(self) -> PlanLoader:
        """Return a loader of this rank's micro-batches for the whole run."""
        assert self.plan is not None, "a StageSchedule callback compiles the plan first"
        assert self.trainer is not None
        tables = {name: ability.examples for name, ability in self.abilities.items()}
        return self._loader(self.plan, tables, self.trainer.accumulate_grad_batches)

    def val_dataloader(self) -> list[DataLoader]:
        """Return a loader for each ability that has held-out examples, in the order of ``val_abilities``."""
        assert self.trainer is not None
        num_rows, loaders = _VAL_ROWS * share_of_rows(self.trainer)[1], list[DataLoader]()
        for name in self.val_abilities():
            ability = self.abilities[name]
            plan = one_pass("validation", ability.val_pool(), num_rows, self.max_length, self.packing)
            loaders.append(self._loader(plan, {name: ability.examples}, 1))
        return loaders

    def val_abilities(self) -> list[str]:
        """Return the names of the abilities that have held-out examples."""
        return [name for name, ability in self.abilities.items() if ability.num_held_out]

    def _loader(self, plan: Plan, tables: dict[str, Any], accumulate: int) -> PlanLoader:
        assert self.trainer is not None
        workers = {"num_workers": self.num_workers, "pin_memory": self.trainer.strategy.root_device.type == "cuda"}
        return PlanLoader(plan, tables, accumulate, *share_of_rows(self.trainer), **workers)


class AbilityData(PlannedData):
    """The data of one ability.

    Args:
        path: A file or list of files (json, jsonl, parquet, csv; optionally .gz or .zst) or a hub id; ``lab`` generates
            the records; None only declares that there are ``num_examples``, for planning.
        reader: Turns a record into a conversation.
        fraction: How much of the ability's training examples to use: the first floor(fraction x N) in rank.
        max_examples: Use the first this many in rank, instead of a fraction; None uses all.
        val_fraction: Fraction of the groups (a question, a conversation before splitting) held out for validation.
        num_examples: Number of records to generate (``lab``) or to declare.
        exclude: Kinds of generated records to leave out (``lab``).
        lab: Options of the generated records: overlap, ambiguity, noise, difficulty, seed (``lab``).
        drop: A drop list: a file of conversations to leave out, as written by ``tag`` and ``leaks``.
        on_bad_record: skip (bad records are counted and shown) or fail.
        max_bad_share: Fail when more than this fraction of the records is bad.
        system: A system prompt for conversations that have none, in training and when the ability is scored.
        streaming: Read a hub id without a download, once; the examples are the same. All of it is read, whatever
            ``fraction`` and ``max_examples`` use; ``hub:<id>::train[:1000]`` reads its first rows alone.

    Raises:
        ValueError: A fraction is outside [0, 1], or ``num_examples``, ``lab`` or ``drop`` does not go with ``path``.
    """

    name = "data"
    default_reader: type[Reader] = MessagesReader

    def __init__(
        self,
        path: str | list[str] | None = LAB,
        reader: Reader | None = None,
        fraction: float = 1.0,
        val_fraction: float = 0.0,
        num_examples: int | None = None,
        exclude: list[str] | None = None,
        lab: LabOptions | None = None,
        drop: str | None = None,
        on_bad_record: str = "skip",
        max_bad_share: float = 0.05,
        max_examples: int | None = None,
        system: str | None = None,
        streaming: bool = False,
    ) -> None:
        super().__init__()
        shares = {"fraction": fraction, "val_fraction": val_fraction, "max_bad_share": max_bad_share}
        for key, share in shares.items():
            within(key, share, 0, 1)
        for key, count in (("num_examples", num_examples), ("max_examples", max_examples)):
            if count is not None:
                within(key, count, 1, 10**9, is_whole=True)
        if max_examples is not None and fraction != 1:
            raise ValueError(
                f"{type(self).__name__}: fraction {fraction:g} and max_examples {max_examples:,} both say how much is "
                "used; give one of them"
            )
        if drop is not None and path is None:
            raise ValueError("drop: there is nothing to leave out with path: null, only a count is declared")
        self.system = checked_system(system)
        self.fraction, self.max_examples = fraction, max_examples
        self.val_fraction, self.drop = val_fraction, drop
        reading = {"on_bad_record": on_bad_record, "max_bad_share": max_bad_share, "streaming": streaming}
        reader, name = reader or self.default_reader(), type(self).__name__
        self.source = source_of(name, path, reader, num_examples, exclude or [], lab, **reading)
        self.base_losses_I: np.ndarray | None = None  # the base's loss of each example, if a curriculum needs it
        self._examples: Examples | None = None
        self._drops: DropList | None = None
        self._held_out_N = self._kept_N = np.zeros(0, dtype=bool)

    @property
    def abilities(self) -> dict[str, AbilityData]:
        """Only this one: an ability alone is a mixture of one."""
        return {self.name: self}

    @property
    def is_declared(self) -> bool:
        """Whether only the number of examples is known."""
        return self.source.num_declared is not None

    @property
    def examples(self) -> Examples:
        """The tokenised examples.

        Raises:
            ValueError: The config declares a count and has no data.
        """
        if self._examples is None:
            raise ValueError(f"data.abilities.{self.name}: path is null, only a count is declared: nothing to train on")
        return self._examples

    @property
    def num_held_out(self) -> int:
        """Number of examples that validation uses."""
        return 0 if self._examples is None else len(self.val_pool())

    @property
    def kept_N(self) -> np.ndarray:
        """Positions of the examples that are not on the drop list, for training and validation."""
        return np.flatnonzero(self._kept_N)

    def load_examples(self, encoder: Encoder, max_length: int, overlong: str) -> None:
        """Render and tokenise the records, or find the examples in the cache."""
        if self.is_declared:
            return
        drops = self._drop_list()  # before tokenising, so that a malformed list is reported first
        self._examples = self.source.examples(self.name, encoder, max_length, overlong, self.system)
        self._held_out_N = np.zeros(len(self._examples), dtype=bool)  # until ``hold_out``
        self._kept_N = ~drops.dropped(self._examples.uids)
        if not self._kept_N.any():
            raise ValueError(f"data.abilities.{self.name}: no usable example in {self.source}: {self.audit_counts()}")

    def part(self) -> Part:
        """Return what the split into training and validation needs."""
        found = self._examples
        return Part(self.name, found.uids if found else [], found.groups if found else [], self.val_fraction)

    def hold_out(self, held_out_N: np.ndarray) -> None:
        """Set the held-out examples; a mixture decides them for all of its abilities together."""
        self._held_out_N = held_out_N

    def notes(self) -> list[str]:
        """Return notes for the user: an empty validation split, examples that are not used."""
        found = list(self.source.notes())
        if self.val_fraction and self._examples is not None and not self.num_held_out:
            found.append(
                f"Warning: no example of {self.name} is held out by val_fraction {self.val_fraction:g}: "
                f"{len(self._examples):,} examples in {len(set(self._examples.groups)):,} groups are too few."
            )
        if self.max_examples is not None:
            population = self.source.num_declared or int((self._kept_N & ~self._held_out_N).sum())
            unseen = int((self._held_out_N & self._kept_N).sum()) - self.num_held_out
            beside = f"; {unseen:,} more are held out and not used" if unseen else ""
            used = min(self.max_examples, population)
            found.append(f"{self.name}: {used:,} of {population:,} examples by max_examples{beside}.")
        return found

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """Yield uid and conversation of every record that is not on the drop list, in the order of the source.

        Needs no tokenizer: the source is read again. An example's uid is one of these, perhaps with ``/n`` (a piece) or
        ``#n`` (the same conversation again) after it; a conversation that does not fit ``max_length`` may have none.

        Raises:
            ValueError: The config declares a count and has no data, or a file cannot be read.
        """
        drops = self._drop_list()
        for _, talk in self.source.conversations(self.name, Audit()):
            if (uid := talk.uid) not in drops:
                yield uid, talk

    def _drop_list(self) -> DropList:
        if self._drops is None:
            self._drops = DropList.read(self.drop, self.name) if self.drop else DropList([], self.name)
        return self._drops

    def pool(self, seed: int) -> Pool:
        """Return the training examples, ranked by a hash keyed by ``seed``, with the fraction applied."""
        if self.source.num_declared is not None:
            pool = Pool.from_count(self.name, self.source.num_declared)
        else:
            pool = self._pool(self._kept_N & ~self._held_out_N, seed)
        return pool.fraction(self.fraction).first(self.max_examples or len(pool))

    def val_pool(self) -> Pool:
        """Return the held-out examples; with ``max_examples``, ``val_fraction`` refers to those."""
        pool = self._pool(self._kept_N & self._held_out_N, seed=0)
        if self.max_examples is None or self.val_fraction == 1:
            return pool
        return pool.first(math.ceil(self.max_examples * self.val_fraction / (1 - self.val_fraction)))

    def _pool(self, chosen_N: np.ndarray, seed: int) -> Pool:
        index_M = np.flatnonzero(chosen_N).astype(index_type(len(chosen_N)))
        return self.pool_of(index_M[rank(self.name, self.examples.uids[index_M], seed)])

    def pool_of(self, index_M: np.ndarray, population: int | None = None) -> Pool:
        """Return a pool of the examples at these positions of the source; ``population`` is by default their number."""
        table = self.examples
        losses_M = None if self.base_losses_I is None else self.base_losses_I[index_M]
        sizes = (table.lengths_N[index_M], table.supervised_N[index_M])
        population = len(index_M) if population is None else population
        return Pool(self.name, index_M, table.uids[index_M], *sizes, population, losses_N=losses_M)

    def pool_key(self) -> list[object]:
        """Return what determines ``pool`` besides the seed: examples, which are used, losses of the base, fraction."""
        chosen = np.packbits(self._kept_N & ~self._held_out_N)
        return [self.name, self.examples.written, chosen, self.base_losses_I, self.fraction, self.max_examples]

    def audit_counts(self) -> dict[str, int]:
        """Return how many records were repaired, truncated, split or dropped, by cause."""
        if self._examples is None:
            return {}
        return dict(self._examples.audit.counts + Counter(self._drop_list().counts(self._examples.uids)))

    def first_places(self) -> dict[str, str]:
        """Return the first records of each cause, such as ``3, 14 of a.jsonl``."""
        return {} if self._examples is None else self._examples.audit.places(self.source.names)

    def content(self, index_M: np.ndarray) -> bytes:
        """Return content hashes of some examples, in their order; for a declared ability, the positions themselves."""
        return (index_M.astype(np.int64) if self._examples is None else self._examples.content_NB[index_M]).tobytes()

    def content_hash(self) -> str:
        """Hash the examples that may be trained and those held out, independent of order and origin."""
        if self._examples is None:
            return digest(self.source.key(self.name), self.fraction, self.max_examples, size=8)
        kept = self._examples.content_hash(self.kept_N)
        return digest(kept, self.held_out_hash(), self.fraction, self.max_examples, size=8)

    def held_out_hash(self) -> str:
        """Hash the examples that validation uses."""
        if self._examples is None:
            return ""
        return self._examples.content_hash(self.val_pool().index_N)


class MathData(AbilityData):
    """Mathematical reasoning; reads ``query, response`` and ``question, answer`` records."""

    name = "math"
    default_reader = MathReader


class CodeData(AbilityData):
    """Code generation; reads ``instruction, input, output`` records."""

    name = "code"
    default_reader = AlpacaReader


class GeneralData(AbilityData):
    """General instruction following; reads ShareGPT conversations."""

    name = "general"
    default_reader = ShareGPTReader
