"""Export: a Hugging Face folder (safetensors, tokenizer with its chat template, model card) from any checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer

from sftlab.data.ability import PlannedData
from sftlab.files import whole_folder
from sftlab.model.checkpoint import load_file, sharded_tensors
from sftlab.model.contents import ARCHITECTURE as ARCHITECTURE
from sftlab.model.contents import NOTE_FILE as NOTE_FILE
from sftlab.model.contents import contents, is_sharded
from sftlab.model.module import SFTModule
from sftlab.plan.ledger import LedgerRow, ledger
from sftlab.plan.plan import Plan

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
        stop_ids = sorted({*data.encoder.stop_ids, tokenizer.eos_token_id} - {None})
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(partial)
        note = {"base": module.path or "a LLaMA from scratch", "template": data.template}
        (partial / NOTE_FILE).write_text(json.dumps(note), encoding="utf-8")


def export_live(
    trainer: Trainer, module: SFTModule, folder: Path, architecture: Path, plan: Plan, num_steps: int
) -> None:
    """Export the model in training, as it is after ``num_steps``; sharded weights are gathered on rank 0's CPU.

    Call it on every rank. The folder appears under its name only when it is complete.
    """
    weights = _full_weights(trainer, module)
    if trainer.is_global_zero:
        write_folder(folder, architecture, weights, ledger(plan, num_steps))
    trainer.strategy.barrier("export")


def _full_weights(trainer: Trainer, module: SFTModule) -> dict[str, torch.Tensor]:
    if getattr(module, "_device_mesh", None) is None:
        return module.backbone.state_dict() if trainer.is_global_zero else {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = cast(dict[str, Any], get_model_state_dict(cast(torch.nn.Module, module.net), options=options))
    return {name.removeprefix("model."): tensor for name, tensor in gathered.items()}


def write_folder(folder: Path, architecture: Path, weights: dict[str, torch.Tensor], rows: Sequence[LedgerRow]) -> None:
    """Write a Hugging Face folder: weights, a copy of the architecture, a model card.

    Raises:
        ValueError: The weights are not those of this architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(architecture))
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name in missing if model.get_parameter(name).is_meta]
    if missing or unexpected:
        raise ValueError(f"export: weights missing: {missing[:3]}, unknown: {list(unexpected)[:3]}")
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        shutil.copytree(architecture, partial, dirs_exist_ok=True)
        note = json.loads((architecture / NOTE_FILE).read_text(encoding="utf-8"))
        (partial / "README.md").write_text(model_card(note["base"], note["template"], rows), encoding="utf-8")


def model_card(base: str, template: str, rows: Sequence[LedgerRow]) -> str:
    """A model card in Markdown with the composition that was trained."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [sft, sftlab]",
        "---",
        "",
        f"Fine-tuned from `{base}` with sftlab, conversation template `{template}`.",
        "",
        "What was trained (repeats counted; shares of the stage):",
        "",
        "| stage | ability | examples | tokens | supervised tokens | share of supervised tokens | epochs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.stage} | {row.ability} | {row.examples:,} | {row.tokens:,} | {row.supervised_tokens:,} "
            f"| {row.share_supervised_tokens:.2%} | {row.epochs:.2f} |"
        )
    return "\n".join([*lines, ""])


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
