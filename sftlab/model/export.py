"""Export: a Hugging Face folder (safetensors, tokenizer with its chat template, model card) from any checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Trainer

from sftlab.data.ability import PlannedData
from sftlab.data.template import Template
from sftlab.model.module import SFTModule
from sftlab.plan.ledger import LedgerRow, ledger
from sftlab.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

_PREFIX = "net.model."  # of the Hugging Face weights inside a checkpoint of SFTModule


def export_live(
    trainer: Trainer, module: SFTModule, data: PlannedData, folder: Path, plan: Plan, num_steps: int
) -> None:
    """Export the model in training, as it is after ``num_steps``; sharded weights are gathered on rank 0's CPU.

    Call it on every rank. The folder appears under its name only when it is complete.
    """
    weights = _full_weights(trainer, module)
    if trainer.is_global_zero:
        assert data.encoder is not None
        card = model_card(module.path or "a LLaMA from scratch", data.template, ledger(plan, num_steps))
        template = data.encoder.template
        write_folder(folder, module.backbone.config, weights, module.tokenizer, template, card)
    trainer.strategy.barrier("export")


def _full_weights(trainer: Trainer, module: SFTModule) -> dict[str, torch.Tensor]:
    model = module.backbone
    if getattr(module, "_device_mesh", None) is None:
        return model.state_dict() if trainer.is_global_zero else {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(cast(torch.nn.Module, module.net), options=options)
    return {name.removeprefix("model."): tensor for name, tensor in gathered.items()}


def write_folder(
    folder: Path,
    config: PretrainedConfig,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast,
    template: Template | None,
    card: str,
) -> None:
    """Write a Hugging Face folder beside its place and rename it when complete.

    Raises:
        ValueError: The weights are not those of this architecture.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name in missing if model.get_parameter(name).is_meta]
    if missing or unexpected:
        raise ValueError(f"export: weights missing: {missing[:3]}, unknown: {list(unexpected)[:3]}")
    model.config.use_cache = True
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    stop_ids = [tokenizer.eos_token_id]
    if template is not None:
        tokenizer.chat_template = template.chat_template()
        stop_ids = sorted({tokenizer.convert_tokens_to_ids(template.end_of_turn), *stop_ids})
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(partial)
    model.config.use_cache = False
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)


def model_card(base: str, template: str, rows: list[LedgerRow]) -> str:
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
        ValueError: There is no such checkpoint, or it is not one of an SFTModule.
    """
    if path.is_dir():
        state = _sharded_weights(path)
    elif path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("state_dict", {})
    else:
        raise ValueError(f"checkpoint: there is no {path}")
    weights = {name.removeprefix(_PREFIX): t for name, t in state.items() if name.startswith(_PREFIX)}
    if not weights:
        raise ValueError(f"checkpoint: {path} holds no weights of a staged run")
    return weights


def _sharded_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights alone, leaving the optimizer's shards on disk; needs no process group."""
    from torch.distributed import checkpoint as dcp

    if not (path / ".metadata").is_file():
        raise ValueError(f"checkpoint: the folder {path} is no complete sharded checkpoint (it has no .metadata)")
    metadata: Any = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if key.startswith(f"state_dict.{_PREFIX}")
    }
    dcp.load(wanted, checkpoint_id=path, no_dist=True)
    return {key.removeprefix("state_dict."): tensor for key, tensor in wanted.items()}
