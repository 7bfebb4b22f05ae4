"""Export: a Hugging Face folder (safetensors, tokenizer with its chat template, model card) from any checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from sftlab.data.ability import PlannedData
from sftlab.data.records import HUB
from sftlab.files import whole_folder
from sftlab.model.adapter import is_adapter, is_turned, merged, pairs, peft_config
from sftlab.model.backbone import generation_ends, hub_name, load_model, resolve_path
from sftlab.model.card import model_card
from sftlab.model.checkpoint import load_file, sharded_tensors
from sftlab.model.contents import ADAPTER, ADAPTER_CONFIG, contents, is_sharded
from sftlab.model.contents import ARCHITECTURE as ARCHITECTURE
from sftlab.model.contents import NOTE_FILE as NOTE_FILE
from sftlab.model.module import SFTModule
from sftlab.plan.ledger import LedgerRow, ledger
from sftlab.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "net.model."  # of the Hugging Face weights inside a checkpoint of SFTModule


def write_architecture(folder: Path, module: SFTModule, data: PlannedData) -> None:
    """Write what a model is besides its weights: config, tokenizer with chat template, generation config, a note.

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
    """What a model card tells of a run."""
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
    return {
        "base": module.path or "a LLaMA from scratch",
        "template": data.template,
        "datasets": sorted({match[1] for match in named if match}),
        "training": training,
    }


def export_live(
    trainer: Trainer, module: SFTModule, folder: Path, architecture: Path, plan: Plan, num_steps: int
) -> None:
    """Export the model in training, as it is after ``num_steps``; sharded weights are gathered on rank 0's CPU.

    Call it on every rank. The folder appears under its name only when it is complete.
    """
    weights, live = _full_weights(trainer, module), module.live_adapter
    if trainer.is_global_zero:
        adapter = live.note() if live is not None else None
        write_folder(folder, architecture, weights, ledger(plan, num_steps), adapter)
    trainer.strategy.barrier("export")


def _full_weights(trainer: Trainer, module: SFTModule) -> dict[str, torch.Tensor]:
    is_kept = module.live_adapter.is_kept if module.live_adapter is not None else lambda name: True
    if getattr(module, "_device_mesh", None) is None:
        held = module.backbone.state_dict() if trainer.is_global_zero else {}
        return {name: tensor for name, tensor in held.items() if is_kept(name)}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = cast(dict[str, Any], get_model_state_dict(cast(torch.nn.Module, module.net), options=options))
    return {name.removeprefix("model."): tensor for name, tensor in gathered.items() if is_kept(name)}


def write_folder(
    folder: Path,
    architecture: Path,
    weights: dict[str, torch.Tensor],
    rows: Sequence[LedgerRow],
    adapter: Mapping[str, Any] | None = None,
) -> None:
    """Write a Hugging Face folder: weights, a copy of the architecture, a model card.

    Args:
        folder: Appears when it is complete.
        architecture: As ``write_architecture`` left it.
        weights: By their names in the model; an adapter's alone where the base has the others.
        rows: What was trained.
        adapter: As a checkpoint notes it; without the weights of its base the folder is one of PEFT.

    Raises:
        ValueError: The weights are not those of this architecture.
    """
    note = json.loads((architecture / NOTE_FILE).read_text(encoding="utf-8"))
    with whole_folder(folder) as partial:
        if adapter is None or not all(map(is_adapter, weights)):
            _whole_model(architecture, weights, adapter).save_pretrained(partial)
            note.pop("base_hash", None)
        else:
            place, revision = hub_name(resolve_path(note["base"]))
            base = str(Path(place).absolute()) if Path(place).is_dir() else place
            text = json.dumps({**peft_config(adapter, base), "revision": revision}, indent=1)
            (partial / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
            save_file({f"base_model.model.{name}": t.contiguous() for name, t in weights.items()}, partial / ADAPTER)
        is_apart = (partial / ADAPTER).is_file()  # beside a config transformers takes an adapter for a whole model
        left_out = shutil.ignore_patterns("config.json") if is_apart else None
        shutil.copytree(architecture, partial, dirs_exist_ok=True, ignore=left_out)
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")
        (partial / "README.md").write_text(model_card(note, rows), encoding="utf-8")


def _whole_model(
    architecture: Path, weights: dict[str, torch.Tensor], adapter: Mapping[str, Any] | None
) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(architecture))
    whole = {name: weight for name, weight in weights.items() if not is_adapter(name)}
    for name, a, b in pairs(weights):
        assert adapter is not None
        turned = is_turned(model.get_submodule(name.rpartition(".")[0]))
        whole[name] = merged(weights[name], a, b, adapter["lora_alpha"] / adapter["r"], turned)
    missing, unexpected = model.load_state_dict(whole, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name in missing if model.get_parameter(name).is_meta]
    if missing or unexpected:
        raise ValueError(f"export: weights missing: {missing[:3]}, unknown: {list(unexpected)[:3]}")
    return model


def write_merged(folder: Path, adapter: Path) -> None:
    """Write the model that an adapter's folder and its base are together.

    Raises:
        ValueError: The base is gone or has changed, or the adapter is damaged.
    """
    model = load_model(str(adapter), None, torch.float32)
    note = json.loads((adapter / NOTE_FILE).read_text(encoding="utf-8"))
    note.pop("base_hash", None)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        shutil.copytree(adapter, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ADAPTER, ADAPTER_CONFIG))
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")


def checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights from a checkpoint, a single file or a folder of FSDP2 shards, under Hugging Face names.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, or it is not one of an SFTModule.
    """
    if not any(name.startswith(_PREFIX) for name in contents(path).weights):
        raise ValueError(f"checkpoint: {path} holds no weights of a staged run")
    if is_sharded(path):
        return sharded_tensors(path, f"state_dict.{_PREFIX}")
    state = load_file(path)["state_dict"]
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
