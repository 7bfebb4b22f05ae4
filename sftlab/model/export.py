"""Export: a Hugging Face folder (safetensors, tokenizer with its chat template, model card) from any checkpoint."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from sftlab.data.ability import PlannedData
from sftlab.data.chat_template import DAY, prints_date
from sftlab.data.records import HUB
from sftlab.files import copy_folder, whole_folder
from sftlab.model.adapter import check_pairs, is_adapter, pairs, peft_config
from sftlab.model.backbone import (
    PEFT_PREFIX,
    checked_base,
    empty_model,
    generation_ends,
    hub_name,
    load_model,
    resolve_path,
)
from sftlab.model.card import FROM_SCRATCH, model_card
from sftlab.model.contents import (
    ADAPTER,
    ADAPTER_CONFIG,
    adapter_base,
    adapter_config,
    check_model_folder,
    contents,
    read_note,
    weight_files,
)
from sftlab.model.contents import ARCHITECTURE as ARCHITECTURE
from sftlab.model.contents import NOTE_FILE as NOTE_FILE
from sftlab.model.layout import Layout, has_heads_of_its_own, of_base
from sftlab.model.module import SFTModule
from sftlab.model.sharded import divide_again, whole
from sftlab.model.weights import WeightFiles, Weights, copy, described, of_checkpoint, of_files
from sftlab.plan.ledger import LedgerRow, ledger
from sftlab.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "net.model."  # prefix of the Hugging Face weights inside a checkpoint of SFTModule


def write_architecture(folder: Path, module: SFTModule, data: PlannedData) -> None:
    """Write everything of a model but its weights: config, tokenizer with chat template, generation config, a note.

    Every export of the run starts from a copy of this folder.
    """
    from transformers import GenerationConfig

    assert data.encoder is not None
    template, tokenizer, config = data.encoder.template, module.tokenizer, module.backbone.config
    with whole_folder(folder) as partial:
        config.use_cache = True
        config.save_pretrained(partial)
        config.use_cache = False
        before, tokenizer.chat_template = tokenizer.chat_template, template.chat_template()
        tokenizer.save_pretrained(partial)
        tokenizer.chat_template = before
        of_base = generation_ends(module.path) if module.config is None else []
        stop_ids = sorted({*data.encoder.stop_ids, *of_base})
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(partial)
        note = _note(module, data)
        if module.live_adapter is not None:
            note["base_hash"] = module.live_adapter.base
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")


def _note(module: SFTModule, data: PlannedData) -> dict[str, Any]:
    """Return what a model card says about a run."""
    paths = [path for ability in data.abilities.values() for path in ability.source.names]
    named = (re.match(rf"{HUB}([^@:]+)", path) for path in paths)
    training = {
        "optimizer": (module.optimizer or {"class_path": "torch.optim.AdamW"})["class_path"].rpartition(".")[2],
        "peak learning rate": module.learning_rate,
        "learning-rate schedule": type(module.lr_schedule).__name__,
        "optimizer step": str(data.batch),
        "tokens in a row": data.max_length,
        "seed": data.seed,
    }
    is_from_scratch = module.path is None or (module.config is not None and module.adapter is None)
    assert data.encoder is not None
    day = {"day": f"{DAY:%d %b %Y}"} if prints_date(str(data.encoder.template.chat_template())) else {}
    return {
        **day,
        "base": FROM_SCRATCH if is_from_scratch else module.path,
        "template": data.template,
        "datasets": sorted({match[1] for match in named if match}),
        "training": training,
    }


def export_live(
    trainer: Trainer, module: SFTModule, folder: Path, architecture: Path, plan: Plan, num_steps: int
) -> None:
    """Export the model in training, as it is after ``num_steps``; sharded weights are gathered one at a time.

    Call it on every rank. The folder appears under its name only when it is complete.
    """
    weights, live, strategy = _live_weights(module), module.live_adapter, trainer.strategy
    is_sharded = module.device_mesh is not None

    def take(name: str) -> torch.Tensor:
        if is_sharded:
            strategy.broadcast(name)  # rank 0 names the next weight, and all ranks gather it
        return weights.take(name).cpu()

    if trainer.is_global_zero:
        adapter = live.note() if live is not None else None
        try:
            write_folder(folder, architecture, Weights(weights.shapes, take), ledger(plan, num_steps), adapter)
        except Exception:  # for example a full disk between two weights; a signal may arrive while ranks gather one
            if is_sharded:
                strategy.broadcast(None)
            raise
        if is_sharded:
            strategy.broadcast(None)
    elif is_sharded:
        while (name := strategy.broadcast(None)) is not None:
            weights.take(name)
    strategy.barrier("export")


def _live_weights(module: SFTModule) -> Weights:
    """Return the weights in training that a checkpoint would hold; all ranks take the same ones in the same order."""
    is_kept = module.live_adapter.is_kept if module.live_adapter is not None else lambda name: True
    divide_again(module)
    held = {name: tensor for name, tensor in module.backbone.state_dict().items() if is_kept(name)}
    return Weights({name: described(tensor) for name, tensor in held.items()}, lambda name: whole(held[name].detach()))


def write_folder(
    folder: Path,
    architecture: Path,
    weights: Weights,
    rows: Sequence[LedgerRow],
    adapter: Mapping[str, Any] | None = None,
) -> None:
    """Write a Hugging Face folder: weights, a copy of the architecture, a model card.

    Args:
        folder: The new folder; appears when complete.
        architecture: The folder that ``write_architecture`` wrote.
        weights: Weights by their names in the model; only the adapter's if the base is unchanged.
        rows: What was trained.
        adapter: The checkpoint's note on its adapter; without weights of the base, a PEFT folder is written.

    Raises:
        ValueError: The weights do not match the architecture.
    """
    note = read_note(architecture)
    with whole_folder(folder) as partial:
        if adapter is None or not all(map(is_adapter, weights.shapes)):
            Layout(empty_from(architecture), weights.shapes, adapter).write(partial, weights.take)
            note.pop("base_hash", None)
        else:
            place, revision = hub_name(resolve_path(note["base"]))
            base = str(Path(place).absolute()) if Path(place).is_dir() else place
            text = json.dumps({**peft_config(adapter, base), "revision": revision}, indent=1)
            (partial / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
            named = weights.renamed(lambda name: f"{PEFT_PREFIX}{name}")
            copy(named, WeightFiles(partial, named.shapes, sys.maxsize, Path(ADAPTER).stem))
        # With a config.json beside it, transformers would take an adapter for a whole model.
        is_apart = (partial / ADAPTER).is_file()
        copy_folder(architecture, partial, ("config.json",) if is_apart else ())
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")
        (partial / "README.md").write_text(model_card(note, rows), encoding="utf-8")


def empty_from(architecture: Path | str, **options: Any) -> PreTrainedModel:
    """Build the model of a folder's config without weights, with its weights tied."""
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(architecture), **options)
    model.tie_weights()
    return model


def write_merged(folder: Path, adapter: Path) -> None:
    """Write the merged model of an adapter's folder and its base.

    Raises:
        ValueError: The base is missing or has changed, or the adapter is damaged.
    """
    note = read_note(adapter)
    note.pop("base_hash", None)
    with whole_folder(folder) as partial:
        if not _merge_by_weight(partial, adapter):
            load_model(str(adapter), None, torch.float32).save_pretrained(partial)
        copy_folder(adapter, partial, (ADAPTER, ADAPTER_CONFIG))
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")


def _merge_by_weight(folder: Path, adapter: Path) -> bool:
    """Merge one weight at a time; impossible for a hub base, or if its files have other weights than the model."""
    base = adapter_base(adapter)
    assert base is not None
    place, config = Path(resolve_path(checked_base(adapter, base))), adapter_config(adapter)
    if not (place / "config.json").is_file():
        return False
    check_model_folder(place)
    model = empty_from(place, dtype=torch.float32)
    with ExitStack() as stack:
        lora = of_files([adapter / ADAPTER], stack).renamed(lambda name: name.removeprefix(PEFT_PREFIX))
        check_pairs(str(adapter / ADAPTER), lora.shapes, config["r"])
        held = of_files(weight_files(place), stack)
        changed = {name for name, _, _ in pairs(lora.shapes)}
        if has_heads_of_its_own(model, held) or not changed.isdisjoint(model.all_tied_weights_keys):
            return False
        weights = of_base(held, lora, model.state_dict())
        try:
            layout = Layout(model, weights.shapes, config)
        except ValueError:
            return False
        if layout.is_joined:
            return False
        layout.write(folder, weights.take)
    model.config.dtype, model.config.architectures = "float32", [type(model).__name__]
    model.config.save_pretrained(folder)
    return True


def checkpoint_weights(path: Path) -> Weights:
    """Return the model's weights from a checkpoint, a file or a folder of FSDP2 shards, under Hugging Face names.

    Raises:
        ValueError: The checkpoint is missing or damaged, or is not one of an SFTModule.
    """
    if not any(name.startswith(_PREFIX) for name in contents(path).weights):
        raise ValueError(f"checkpoint: {path} holds no weights of a staged run")
    return of_checkpoint(path, _PREFIX)
