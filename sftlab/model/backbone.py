"""The backbone: any Hugging Face causal LM by path or id, or a LLaMA from a config; and its tokenizer."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from sftlab.lab.bases import LAB_SIZES, base_folder
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.attention import register_attention
from sftlab.model.contents import check_model_folder

if TYPE_CHECKING:
    from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

LAB = "lab:"
ATTENTIONS = ("auto", "per_document", "sdpa", "flash_attention_2", "flex_attention", "eager")


def resolve_path(path: str) -> str:
    """Where the weights lie: the folder of a base that ships with the package (``lab:base``), else the path itself.

    Raises:
        ValueError: There is no base of that name.
    """
    return str(base_folder(path)) if path.startswith(LAB) else path


def hub_name(path: str) -> tuple[str, str | None]:
    """A model's folder or hub id without the revision that it may ask for, ``owner/name@revision``, and that revision.

    Raises:
        ValueError: Behind the ``@`` of a hub id stands nothing that names a branch, tag or commit.
    """
    name, at, revision = path.partition("@")
    if not at or Path(path).exists():
        return path, None
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or not re.fullmatch(r"\w[\w./-]*", revision):
        raise ValueError(f"model.path: {path!r} is no folder here; a hub id is written <owner>/<name>[@<revision>]")
    return name, revision


def _pinned(path: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` is asked for."""
    name, revision = hub_name(resolve_path(path))
    return name, {"revision": revision} if revision else {}


@functools.cache
def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder or id; ``lab:*`` and ``lab-*`` name the embedded one.

    Raises:
        ValueError: There is none, or it has no fast implementation.
    """
    if path.startswith(LAB) or path in LAB_SIZES:
        return lab_tokenizer()
    from transformers import AutoTokenizer

    name, revision = _pinned(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **revision)
    except Exception as error:  # of damaged files the library fails in every way that there is
        raise ValueError(_not_loadable("tokenizer", path, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(f"model.path: the tokenizer of {path!r} has no fast form; save it once with use_fast=True")
    return cast("PreTrainedTokenizerFast", tokenizer)


def load_config(path: str | None, config: dict[str, Any] | None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The architecture: of a path, of a base or size of the lab, or a LLaMA from keyword arguments.

    Raises:
        ValueError: The path holds no model, the keyword arguments describe none, or neither was given.
    """
    from transformers import AutoConfig, LlamaConfig

    if config is not None:
        return _llama_config(json.dumps(config, sort_keys=True, default=str), LlamaConfig, config)
    if path in LAB_SIZES:
        tokenizer = lab_tokenizer()
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return LlamaConfig(vocab_size=len(tokenizer), **ids, **LAB_SIZES[path])
    if path is None:
        raise ValueError("model: give path (a folder, a hub id or lab:base) or config (a LLaMA from scratch)")
    name, revision = _pinned(path)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **revision)
    except Exception as error:  # as above
        raise ValueError(_not_loadable("model", path, error)) from error


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
_checked: set[str] = set()


def _llama_config(key: str, cls: type[LlamaConfig], config: dict[str, Any]) -> LlamaConfig:
    """A LLaMA's config that a model can be built of and run: tried once, without memory for its weights."""
    from transformers import AutoModelForCausalLM

    for name in _SIZES:
        if isinstance(size := config.get(name), int) and size < 1:
            raise ValueError(f"model.config.{name}: must be 1 or more, not {size}")
    try:
        made = cls(**config)
        if key not in _checked:
            with torch.device("meta"), torch.no_grad():
                model = AutoModelForCausalLM.from_config(made)
                model(torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.zeros(1, 1, 4, 4), use_cache=False)
            _checked.add(key)
    except Exception as error:  # its own checks of types, or layers that do not fit together: of many classes
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model.config: no LLaMA can be built of it ({type(error).__name__}: {reason})") from error
    return made


def load_model(
    path: str, attention: str | None, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A pretrained model with all of its weights, from safetensors alone.

    Raises:
        ValueError: The path holds no model, or one that is damaged or incomplete.
    """
    from transformers import AutoModelForCausalLM

    place, revision = _pinned(path)
    if (Path(place) / "config.json").is_file():
        check_model_folder(Path(place))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "use_safetensors": True, **revision}
    try:
        model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
            place, dtype=dtype, attn_implementation=attention, output_loading_info=True, **options
        )
    except Exception as error:  # as above
        raise ValueError(_not_loadable("model", path, error)) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"model.path: {path!r} has no weights for {missing[0]} and {len(missing) - 1} others")
    return model


def build_backbone(
    path: str | None,
    config: dict[str, Any] | None,
    attention: str | None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model with its weights: pretrained when ``path`` names a folder or id, random otherwise.

    ``attention`` None takes transformers' default for the architecture.

    Caching is off: with it on, transformers stops telling packed examples apart, in silence.

    Raises:
        ValueError: The path holds no model.
    """
    from transformers import AutoModelForCausalLM

    register_attention()
    if config is None and path not in LAB_SIZES and path is not None:
        model = load_model(path, attention, dtype, trust_remote_code)
    else:
        built = load_config(path, config)
        model = AutoModelForCausalLM.from_config(built, attn_implementation=attention, dtype=dtype)
    model.config.use_cache = False
    return model.train()


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of an architecture, counted without allocating them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def _not_loadable(what: str, path: str, error: Exception) -> str:
    where = "the folder" if Path(path).is_dir() else "no such folder here, and as a hub id"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return f"model.path: no {what} could be loaded from {path!r} ({where}: {reason})"
