"""Writes a first config from surveyed files, a model and a machine. Every choice states its reason."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from sftlab.data.encoder import Encoder
from sftlab.data.fitter import Fitter
from sftlab.data.readers import AlpacaReader, GSM8KReader, PairReader, Reader, RFTReader, ShareGPTReader
from sftlab.data.records import HUB
from sftlab.data.survey import Survey
from sftlab.data.template import get_template
from sftlab.model.backbone import count_parameters, load_config, load_tokenizer
from sftlab.processes import num_cores
from sftlab.yaml_files import scalar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CLASSES = {"math": "MathData", "code": "CodeData", "general": "GeneralData"}
_USUAL: dict[str, tuple[type[Reader], ...]] = {
    "math": (GSM8KReader, RFTReader), "code": (AlpacaReader,), "general": (ShareGPTReader,)}  # fmt: skip
_LEAST_LENGTH, _MOST_LENGTH = 128, {"cpu": 1024, "gpu": 4096}  # tokens in a row
_MOST_TOKENS = 300  # conversations of each file whose tokens are counted
_ROWS = {"cpu": 4, "gpu": 8}  # packed rows of a micro-batch
_BYTES_PER_PARAMETER = 16  # weights, gradients and two moments in fp32
_SMALL_MODEL = "HuggingFaceTB/SmolLM2-135M"
_SMALL = 1e9  # parameters up to which a checkpoint takes seconds
_STEPS = 50  # fewest optimizer steps per epoch of the smallest stage, if there is enough data


@dataclass(frozen=True)
class Machine:
    """The machine to train on.

    Attributes:
        num_cores: Number of cores that this process may use.
        memory_gib: Memory of the machine in GiB.
        gpus: Name and memory in GiB of each GPU.
    """

    num_cores: int
    memory_gib: float
    gpus: tuple[tuple[str, float], ...]

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        import torch

        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return cls(num_cores(), memory, tuple((gpu.name, gpu.total_memory / 2**30) for gpu in found))

    def __str__(self) -> str:
        """Describe it in words."""
        gpus = f"{len(self.gpus)} x {self.gpus[0][0]} with {self.gpus[0][1]:.0f} GiB" if self.gpus else "no GPU"
        return f"{self.num_cores} cores, {self.memory_gib:.0f} GiB, {gpus}"

    @property
    def kind(self) -> str:
        """Return gpu or cpu."""
        return "gpu" if self.gpus else "cpu"


@dataclass(frozen=True)
class Model:
    """A base, described without loading its weights.

    Attributes:
        path: Folder, hub id or lab:base.
        tokenizer: Its tokenizer.
        positions: Number of positions that it was made for.
        num_parameters: Number of parameters of the architecture.
    """

    path: str
    tokenizer: PreTrainedTokenizerFast
    positions: int
    num_parameters: int

    @classmethod
    def at(cls, path: str) -> Model:
        """Describe the model of a path.

        Raises:
            ValueError: There is no model.
        """
        config = load_config(path, None)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or _MOST_LENGTH["gpu"]
        return cls(path, load_tokenizer(path), positions, count_parameters(config))

    @property
    def training_gib(self) -> float:
        """Return the memory of weights, gradients and optimizer state in GiB."""
        return self.num_parameters * _BYTES_PER_PARAMETER / 2**30


def local_model(folder: Path) -> str:
    """Return a model in ``models/`` of a folder, or else the base that ships."""
    found = sorted(folder.glob("models/*/config.json"))
    return found[0].parent.relative_to(folder).as_posix() if found else "lab:base"


class Starter:
    """The choices of a first config.

    Args:
        files: Surveyed files that a reader fits.
        model: The base.
        machine: The machine to train on.

    Raises:
        ValueError: No template can write the conversations.
    """

    def __init__(self, files: Sequence[Survey], model: Model, machine: Machine) -> None:
        self.model, self.machine = model, machine
        self.abilities = _abilities(files)
        self.template = self._template([talk for file in files for talk in file.talks[:50]])
        fitter = Fitter(Encoder(model.tokenizer, get_template(self.template, model.tokenizer)), 10**7, "truncate")
        self.lengths = {file.path: self._lengths(fitter, file) for file in files}
        self.counts = {name: sum(file.num_records for file in mine) for name, mine in self.abilities.items()}
        self.max_length = self._max_length()
        self.batch = self._batch()

    def _template(self, talks: Sequence[Any]) -> str:
        """Return the tokenizer's own template if it can write the data, else the first of ours that can."""
        tokenizer = self.model.tokenizer
        if self.model.path.startswith("lab"):
            names = ["vicuna_short"]
        else:
            names = [*(["tokenizer"] if tokenizer.chat_template else []), "chatml", "vicuna_v1.1"]
        told = []
        for name in names:
            try:
                fitter = Fitter(Encoder(tokenizer, get_template(name, tokenizer)), 10**7, "truncate")
            except ValueError as error:
                told.append(str(error))
                continue
            refused = [fitted.refused for fitted in fitter.fitted(talks) if fitted.refused]
            if len(refused) <= 0.05 * len(talks):
                return name
            told.append(f"{name}: {refused[0]}")
        raise ValueError("\n  ".join(["no template writes these conversations with this tokenizer:", *told]))

    @staticmethod
    def _lengths(fitter: Fitter, file: Survey) -> np.ndarray:
        """Return the tokens of some examples of a file."""
        fitted = fitter.fitted(file.talks[:_MOST_TOKENS])
        return np.array([len(part.ids) for one in fitted for _, part in one.parts] or [0])

    def _max_length(self) -> int:
        """Return the power of two that nearly all examples fit in, as far as model and machine allow."""
        longest = max(float(np.quantile(lengths, 0.98)) for lengths in self.lengths.values())
        wanted = 1 << max(0, int(np.ceil(np.log2(max(longest, 1)))))
        return int(min(max(wanted, _LEAST_LENGTH), _MOST_LENGTH[self.machine.kind], self.model.positions))

    def _batch(self) -> int:
        """Return the conversations per step: the study's 128, or fewer if an epoch would have only a few steps."""
        fewest = sum(self.counts[name] for name in self.stages[0])
        return int(min(128, max(4, 1 << int(np.log2(max(1, fewest / _STEPS))))))

    @property
    def stages(self) -> list[list[str]]:
        """Return the abilities of each stage: specialised ones before general ones, if there are both."""
        general = [name for name, mine in self.abilities.items() if mine[0].kind == "general"]
        specialised = [name for name in self.abilities if name not in general]
        return [specialised, general] if specialised and general else [list(self.abilities)]

    @property
    def replay(self) -> float:
        """Return the k of DMT: the smallest power of 1/4 that replays about 50 examples of each specialised ability."""
        fewest = min(self.counts[name] for name in self.stages[0])
        return float(next((k for k in (1 / 256, 1 / 64, 1 / 16) if k * fewest >= 50), 1 / 4))

    @property
    def accumulate(self) -> int:
        """Return the micro-batches per step."""
        mean = max(float(lengths.mean()) for lengths in self.lengths.values())
        rows = self.batch * mean / self.max_length / max(1, len(self.machine.gpus))
        return int(1 << max(0, int(np.ceil(np.log2(max(rows / _ROWS[self.machine.kind], 1))))))

    @property
    def warnings(self) -> list[str]:
        """Return warnings about what may not work."""
        memory = sum(gib for _, gib in self.machine.gpus) if self.machine.gpus else self.machine.memory_gib
        needs = self.model.training_gib
        said = []
        if self.model.path.startswith("lab"):
            said.append(
                f"{self.model.path} comes with sftlab and has read generated text alone ({self.model.num_parameters:,} "
                "parameters): it shows that everything works, and learns next to nothing of real text. For that name a "
                f"model, by a folder or a hub id: --model {_SMALL_MODEL} (a small one)."
            )
        if needs > 0.8 * memory:
            said.append(
                f"Full fine-tuning of {self.model.path} takes about {needs:,.0f} GiB before activations, and this "
                f"machine has {memory:,.0f} GiB: take a smaller model (--model), or more GPUs with strategy: fsdp2."
            )
        if not self.machine.gpus and self.model.num_parameters > 50e6:
            said.append("Without a GPU a model of this size trains slowly; the time left is shown after a few steps.")
        return said

    def text(self) -> str:
        """Return the config, with comments."""
        lengths = np.concatenate(list(self.lengths.values()))
        steps = sum(self.counts[name] for name in self.stages[0]) // self.batch
        rate = "3.0e-3" if self.model.path.startswith("lab") else "2.0e-5"
        multi = [_line("  strategy: fsdp2", "weights and optimizer state shared out over the GPUs")]
        lines = [
            "# A first config, from what sftlab init found; every key is explained by: sftlab docs configuration",
            f"# Machine: {self.machine}. Model: {self.model.num_parameters / 1e6:,.1f}M parameters.",
            *(f"# {line}" for warning in self.warnings for line in textwrap.wrap(f"Warning: {warning}", 110)),
            _line("seed_everything: 1", "subsets, order and initial weights"),
            "data:",
            "  abilities:",
            *(line for name, mine in self.abilities.items() for line in self._ability(name, mine)),
            _line(f"  template: {self.template}", "how turns are written"),
            _line(
                f"  max_length: {self.max_length}",
                f"tokens in a row: {(lengths <= self.max_length).sum():,} of {len(lengths):,} examples looked at "
                "fit; longer ones are split or cut",
            ),
            _line(f"  batch: {{examples: {self.batch}}}", f"conversations per step: {steps:,} steps an epoch"),
            *self._schedule(),
            "model:",
            _line(f"  path: {_yaml(self.model.path)}", "any causal LM: a folder or a hub id"),
            _line(f"  learning_rate: {rate}", "peak of each stage's warm-up and cosine"),
            _line("  warmup_ratio: 0.03", "part of each stage's steps"),
            "trainer:",
            "  accelerator: auto",
            _line(f"  devices: {max(1, len(self.machine.gpus))}", "GPUs, or processes on a CPU"),
            *(multi if len(self.machine.gpus) > 1 else []),
            _line(f"  accumulate_grad_batches: {self.accumulate}", "more needs less memory; it never changes the step"),
            *self._checkpoints(steps),
        ]
        return "".join(f"{line}\n" for line in lines)

    def _checkpoints(self, steps: int) -> list[str]:
        """Return checkpoints at some steps of a small pass: otherwise a killed run returns to its last stage."""
        if self.model.num_parameters > _SMALL:
            return []
        every = max(10, steps // 4)
        return [
            _line("  callbacks:", "also at the end of each stage; after a kill, --ckpt_path last resumes"),
            f"    - {{class_path: RunCheckpoint, init_args: {{every_n_steps: {every}}}}}",
        ]

    def _ability(self, name: str, mine: Sequence[Survey]) -> list[str]:
        first, records = mine[0], " and ".join(file.count_words for file in mine)
        lengths = np.concatenate([self.lengths[file.path] for file in mine])
        held_out = min(0.1, max(0.02, round(50 / self.counts[name], 2)))
        paths = [file.path for file in mine]
        given = [] if isinstance(first.reader, _USUAL[first.kind]) else [f"        reader: {_reader(first.reader)}"]
        return [
            _line(f"    {_yaml(name)}:", f"{records} records, about {lengths.mean():,.0f} tokens each"),
            f"      class_path: {_CLASSES[first.kind]}",
            "      init_args:",
            f"        path: {_yaml(paths if len(paths) > 1 else paths[0])}",
            *given,
            _line(f"        val_fraction: {held_out:g}", "held out: its loss is measured after each stage"),
        ]

    def _schedule(self) -> list[str]:
        if len(self.stages) == 1:
            why = "one stage over all of it" if len(self.abilities) > 1 else "one ability, so one stage"
            return ["schedule:", _line("  class_path: MultiTask", why), "  init_args: {epochs: 3}"]
        specialised, general = (f"[{', '.join(_yaml(name) for name in names)}]" for names in self.stages)
        return [
            "schedule:",
            _line("  class_path: DMT", "or MultiTask, Sequential, MixedSequential, Stages"),
            "  init_args:",
            _line(f"    specialised: {specialised}", "stage 1"),
            _line(f"    general: {general}", "stage 2 ..."),
            _line(f"    k: {self.replay:g}", "... with this fraction of each specialised ability replayed"),
            _line("    epochs: 3", "passes over each stage's mixture"),
        ]


def _line(setting: str, comment: str) -> str:
    """Return a setting followed by its comment."""
    return f"{setting:<33} # {comment}"


def _abilities(files: Sequence[Survey]) -> dict[str, list[Survey]]:
    """Group files by ability: those of one kind and reader are one; further ones are named after their files."""
    found: dict[str, list[Survey]] = {}
    for file in files:
        same = [name for name, mine in found.items() if mine[0].kind == file.kind and _are_read_alike(mine[0], file)]
        name = same[0] if same else file.kind if file.kind not in found else _name_of(file, found)
        found.setdefault(name, []).append(file)
    return {name: found[name] for kind in _CLASSES for name in found if found[name][0].kind == kind}


def _are_read_alike(one: Survey, other: Survey) -> bool:
    usual = _USUAL[one.kind]
    both_usual = isinstance(one.reader, usual) and isinstance(other.reader, usual)
    return both_usual or _reader(one.reader) == _reader(other.reader)


def _name_of(file: Survey, taken: Mapping[str, Any]) -> str:
    """Return a name for an ability: the file's, or its folder's if the file is called train or data."""
    path = Path(file.path.removeprefix(HUB))
    stem = path.name.split(".")[0]
    if stem.lower() in ("train", "data", "dataset", "records") and path.parent.name:
        stem = path.parent.name
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "more"
    name = name if isinstance(scalar(name), str) else f"data_{name}"  # in YAML, no and 1 are not texts
    return name if name not in taken else f"{name}_{len(taken) + 1}"


def _reader(reader: Reader | None) -> str:
    """Return a reader as YAML."""
    name = type(reader).__name__
    if type(reader) is PairReader:
        made = f"{{question: {_yaml(reader.question)}, answer: {_yaml(reader.answer)}}}"
        return f"{{class_path: {name}, init_args: {made}}}"
    return f"{{class_path: {name}}}"


def _yaml(value: Any) -> str:
    """Return a value in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
