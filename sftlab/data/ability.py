"""The data of one ability: records, reader, validation split by group, fraction; usable alone or in a mixture."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from sftlab.data.conversation import Audit, Conversation
from sftlab.data.droplist import DropList
from sftlab.data.encoder import Encoder
from sftlab.data.examples import Examples
from sftlab.data.feed import PlanLoader
from sftlab.data.readers import AlpacaReader, MathReader, MessagesReader, Reader, ShareGPTReader
from sftlab.data.source import LAB, DeclaredSource, FileSource, LabSource, Source
from sftlab.data.template import get_template
from sftlab.plan.compile import compile_plan
from sftlab.plan.plan import Plan
from sftlab.plan.policy import MixturePolicy, Proportional
from sftlab.plan.pool import Pool, seed_from
from sftlab.plan.stage import Stage, StepSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VAL_ROWS = 8  # packed rows of a validation micro-batch


class PlannedData(LightningDataModule):
    """Abilities whose examples a plan orders; a schedule calls ``load``, ``pools`` and ``follow`` in that order.

    Args:
        template: Name of the conversation template.
        max_length: Tokens in a packed row.
        overlong: split, truncate or drop.
        batch: {examples: N} or {rows: N} of one optimizer step.
        num_workers: Processes that prepare batches.
        seed: Chooses subsets and orders examples; None takes seed_everything's.
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
    ) -> None:
        super().__init__()
        unknown = sorted(set(batch) - {"examples", "rows"})
        if unknown:
            raise ValueError(f"data.batch: {unknown} is not known; give examples or rows")
        self.template, self.max_length, self.overlong = template, max_length, overlong
        self.batch, self.num_workers, self._seed = StepSize(**batch), num_workers, seed
        self.encoder: Encoder | None = None
        self.plan: Plan | None = None

    @property
    @abstractmethod
    def abilities(self) -> dict[str, AbilityData]:
        """The abilities by name."""

    @property
    def seed(self) -> int:
        """The seed of subsets and order."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def load(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Render and tokenise every ability, or find the result in the cache."""
        self.encoder = Encoder(tokenizer, get_template(self.template, tokenizer))
        for ability in self.abilities.values():
            ability.load_examples(self.encoder, self.max_length, self.overlong)

    def pools(self) -> list[Pool]:
        """The training examples of each ability, ranked, its fraction applied."""
        return [ability.pool(self.seed) for ability in self.abilities.values()]

    def audits(self) -> dict[str, dict[str, int]]:
        """What was repaired, truncated, split or dropped: counts by ability and cause."""
        return {name: ability.audit_counts() for name, ability in self.abilities.items()}

    def audit_places(self) -> dict[str, dict[str, str]]:
        """The first records of each count, in words, by ability and cause."""
        return {name: ability.first_places() for name, ability in self.abilities.items()}

    def identity(self) -> dict[str, str]:
        """Hashes of what determines the data, part by part; a resumed run must have the same."""
        parts = {f"data of {name}": ability.source_hash() for name, ability in self.abilities.items()}
        return {**parts, "seed": str(self.seed), "batch": str(self.batch), "max_length": str(self.max_length)}

    def follow(self, plan: Plan) -> None:
        """Feed this plan."""
        self.plan = plan

    def train_dataloader(self) -> PlanLoader:
        """The micro-batches of this rank for the whole run."""
        assert self.plan is not None, "a StageSchedule callback compiles the plan first"
        assert self.trainer is not None
        tables = {name: ability.examples for name, ability in self.abilities.items()}
        return self._loader(self.plan, tables, self.trainer.accumulate_grad_batches)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader for each ability that has held-out examples, in the order of ``val_abilities``."""
        return [self._loader(self._val_plan(name), self._tables(name), 1) for name in self.val_abilities()]

    def val_abilities(self) -> list[str]:
        """Abilities with held-out examples."""
        return [name for name, ability in self.abilities.items() if ability.num_held_out]

    def _tables(self, name: str) -> dict[str, Any]:
        return {name: self.abilities[name].examples}

    def _val_plan(self, name: str) -> Plan:
        assert self.trainer is not None
        batch = StepSize(rows=_VAL_ROWS * self.trainer.world_size)
        stage = Stage("validation", {name: 1.0}, epochs=1)
        return compile_plan([self.abilities[name].val_pool()], [stage], Proportional(), batch, self.max_length)

    def _loader(self, plan: Plan, tables: dict[str, Any], accumulate: int) -> PlanLoader:
        assert self.trainer is not None
        workers = {"num_workers": self.num_workers, "pin_memory": self.trainer.strategy.root_device.type == "cuda"}
        return PlanLoader(plan, tables, accumulate, self.trainer.global_rank, self.trainer.world_size, **workers)


class AbilityData(PlannedData):
    """The data of one ability.

    Args:
        path: File, list of files (json, jsonl, parquet, csv; .gz, .zst) or hub id; ``lab`` generates records; None
            declares that there are ``num_examples`` without having them, for planning.
        reader: Turns a record into a conversation.
        fraction: How much of the ability's training examples is used: the first floor(fraction x N) in rank.
        val_fraction: Part of the groups (a question, a conversation before splitting) held out for validation.
        num_examples: Records to generate (``lab``) or to declare.
        exclude: Kinds of generated records to leave out (``lab``).
        drop: File of conversations to leave out, see ``droplist``; such as ``tag`` and ``leaks`` write.
        on_bad_record: skip (counted and shown) or fail.
        max_bad_share: Fail when more than this part of the records is bad.

    Raises:
        ValueError: A fraction is outside [0, 1], or ``num_examples`` or ``drop`` is missing or has no use.
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
        drop: str | None = None,
        on_bad_record: str = "skip",
        max_bad_share: float = 0.05,
    ) -> None:
        super().__init__()
        for key, value in (("fraction", fraction), ("val_fraction", val_fraction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key}: {value} does not lie between 0 and 1")
        if (num_examples is None) == (path in (None, LAB)):
            raise ValueError(
                f"{type(self).__name__}: path {path!r} with num_examples {num_examples}; num_examples goes with "
                "path: lab (generate) or null (declare), and is null for files"
            )
        if drop is not None and path is None:
            raise ValueError("drop: there is nothing to leave out with path: null, only a count is declared")
        self.fraction, self.val_fraction, self.drop = fraction, val_fraction, drop
        self.source: Source
        if num_examples is None:
            paths = path if isinstance(path, list) else [str(path)]
            self.source = FileSource(paths, reader or self.default_reader(), on_bad_record, max_bad_share)
        else:
            self.source = DeclaredSource(num_examples) if path is None else LabSource(num_examples, exclude or [])
        self._examples: Examples | None = None
        self._drops: DropList | None = None
        self._held_out_N = self._kept_N = np.zeros(0, dtype=bool)

    @property
    def abilities(self) -> dict[str, AbilityData]:
        """Itself: an ability alone is a mixture of one."""
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
        """Examples held out for validation."""
        return int((self._held_out_N & self._kept_N).sum())

    @property
    def kept_N(self) -> np.ndarray:
        """Positions of the examples that are not on the drop list, for training and validation."""
        return np.flatnonzero(self._kept_N)

    def load_examples(self, encoder: Encoder, max_length: int, overlong: str) -> None:
        """Render and tokenise the records, or find the result in the cache."""
        if self.is_declared:
            return
        drops = self._drop_list()  # a malformed one is told before anything is tokenised
        self._examples = self.source.examples(self.name, encoder, max_length, overlong)
        threshold = int(self.val_fraction * 2**64)
        hashed = [seed_from("held out", self.name, group) for group in self._examples.groups] if threshold else []
        self._held_out_N = np.array([h < threshold for h in hashed] or [False] * len(self._examples), dtype=bool)
        self._kept_N = ~drops.dropped(self._examples.uids)
        if not self._kept_N.any():
            raise ValueError(f"data.abilities.{self.name}: no usable example in {self.source}: {self.audit_counts()}")

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """Uid and conversation of every record that is not on the drop list, in the order of the source.

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
        """The training examples, ranked by a hash keyed by ``seed``, the fraction applied."""
        if self.source.num_declared is not None:
            return Pool.from_count(self.name, self.source.num_declared).fraction(self.fraction)
        return self._pool(self._kept_N & ~self._held_out_N, seed).fraction(self.fraction)

    def val_pool(self) -> Pool:
        """The held-out examples."""
        return self._pool(self._kept_N & self._held_out_N, seed=0)

    def _pool(self, chosen_N: np.ndarray, seed: int) -> Pool:
        index_M = np.flatnonzero(chosen_N)
        table = self.examples
        uids = [table.uids[i] for i in index_M]
        return Pool.ranked(self.name, uids, table.lengths_N[index_M], table.supervised_N[index_M], seed, index_M)

    def audit_counts(self) -> dict[str, int]:
        """Records repaired, truncated, split or dropped, by cause."""
        if self._examples is None:
            return {}
        return dict(self._examples.audit.counts + Counter(self._drop_list().counts(self._examples.uids)))

    def first_places(self) -> dict[str, str]:
        """The first records of each cause, such as ``3, 14 of a.jsonl``."""
        return {} if self._examples is None else self._examples.audit.places(self.source.names)

    def table_hash(self) -> str:
        """Name of the tokenised examples: equal names, equal token ids and masks."""
        return self._examples.fingerprint if self._examples is not None else str(self.source)

    def held_out_hash(self) -> str:
        """Hash of the examples that validation sees."""
        uids = sorted(self.val_pool().uids_N.tolist()) if self.num_held_out else []
        return hashlib.blake2b("\n".join([self.table_hash(), *uids]).encode(), digest_size=8).hexdigest()

    def source_hash(self) -> str:
        """Hash of what determines the examples and which of them are used."""
        source = self._examples.fingerprint if self._examples is not None else str(self.source)
        used = [source, self.fraction, self.val_fraction]
        text = json.dumps([*used, self._drop_list().content_hash()] if self.drop else used)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
