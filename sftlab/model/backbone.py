"""The backbone: any Hugging Face causal LM by path or id, or a LLaMA from a config; and its tokenizer."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file

from sftlab.bounds import within
from sftlab.fingerprint import digest, file_hash
from sftlab.lab.bases import LAB_SIZES, base_folder
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.adapter import check_pairs, is_transposed, merged, pairs
from sftlab.model.attention import register_attention
from sftlab.model.contents import (
    ADAPTER,
    adapter_base,
    adapter_config,
    check_model_folder,
    is_model_folder,
    noted_base_hash,
)
from sftlab.model.leftover import tell_leftover, without_table

if TYPE_CHECKING:
    from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

LAB = "lab:"
PEFT_PREFIX = "base_model.model."  # of names in an adapter's file
ATTENTIONS = ("auto", "per_document", "sdpa", "flash_attention_2", "flex_attention", "eager")


def resolve_path(path: str) -> str:
    """Return where the weights are: the folder of a base that ships with the package (``lab:base``), else the path.

    Raises:
        ValueError: There is no base of that name.
    """
    return str(base_folder(path)) if path.startswith(LAB) else path


def hub_name(path: str) -> tuple[str, str | None]:
    """Split a model's folder or hub id and the revision that it may ask for: ``owner/name@revision``.

    Raises:
        ValueError: Behind the ``@`` of a hub id stands nothing that names a branch, tag or commit.
    """
    name, at, revision = path.partition("@")
    if not at or Path(path).exists():
        return path, None
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or not re.fullmatch(r"\w[\w./-]*", revision):
        raise ValueError(f"model.path: {path!r} is not a folder here; a hub id is written <owner>/<name>[@<revision>]")
    return name, revision


def _pinned(path: str) -> tuple[str, dict[str, str]]:
    """Return the arguments of ``from_pretrained``."""
    name, revision = hub_name(resolve_path(path))
    return name, {"revision": revision} if revision else {}


@functools.cache
def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder or id; ``lab:*`` and ``lab-*`` name the embedded one.

    Raises:
        ValueError: There is no tokenizer, or it has no fast implementation.
    """
    if path.startswith(LAB) or path in LAB_SIZES:
        return lab_tokenizer()
    from transformers import AutoTokenizer

    name, revision = _pinned(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **revision)
    except Exception as error:  # with damaged files the library may raise anything
        raise ValueError(_not_loadable("tokenizer", path, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(f"model.path: the tokenizer of {path!r} has no fast form; save it once with use_fast=True")
    if not isinstance(longest := tokenizer.model_max_length, (int, float)):
        raise ValueError(
            f"model.path: model_max_length in tokenizer_config.json of {path!r} is {longest!r}, no number; correct it"
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def load_config(path: str | None, config: dict[str, Any] | None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the architecture: of a path, of a base or size of the lab, or a LLaMA from keyword arguments.

    Raises:
        ValueError: The path holds no model, the keyword arguments describe none, or neither was given.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, LlamaConfig

    if config is not None:
        return _llama_config(json.dumps(config, sort_keys=True, default=str), LlamaConfig, config)
    if path in LAB_SIZES:
        tokenizer = lab_tokenizer()
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return LlamaConfig(vocab_size=len(tokenizer), **ids, **LAB_SIZES[path])
    if path is None:
        raise ValueError("model: give path (a folder, a hub id or lab:base) or config (a LLaMA from scratch)")
    if (base := adapter_base(Path(resolve_path(path)))) is not None:
        return load_config(base, None, trust_remote_code)
    name, revision = _pinned(path)
    try:
        found = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **revision)
    except Exception as error:  # as above
        raise ValueError(_not_loadable("model", path, error)) from error
    _check_dropout(f"model.path: config.json of {path!r}: ", found.to_dict())
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in getattr(found, "auto_map", {}):
        raise ValueError(
            f"model.path: {path!r} is a {found.model_type}, of which there is no causal language model (an encoder-"
            "decoder, for example); give a decoder such as LLaMA, Qwen or Mistral"
        )
    return found


def _check_dropout(where: str, config: Mapping[str, Any]) -> None:
    """Refuse a dropout that no layer accepts, which would fail only at the first step."""
    for name, value in config.items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, (int, float)):
            within(f"{where}{name}", value, 0, 1)


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
_checked: set[str] = set()


def _llama_config(key: str, cls: type[LlamaConfig], config: dict[str, Any]) -> LlamaConfig:
    """Build a LLaMA's config and check it by building the model once, without memory for its weights."""
    from transformers import AutoModelForCausalLM

    for name in _SIZES:
        if isinstance(size := config.get(name), int) and size < 1:
            raise ValueError(f"model.config.{name}: must be 1 or more, not {size}")
    _check_dropout("model.config.", config)
    try:
        made = cls(**config)
        if key not in _checked:
            with torch.device("meta"), torch.no_grad():
                model = AutoModelForCausalLM.from_config(made)
                model(torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.zeros(1, 1, 4, 4), use_cache=False)
            _checked.add(key)
    except Exception as error:  # transformers' type checks, layers that do not fit together: any kind of error
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model.config: no LLaMA can be built of it ({type(error).__name__}: {reason})") from error
    return made


def load_model(
    path: str,
    attention: str | None,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    quantise: str | None = None,
) -> PreTrainedModel:
    """Load a pretrained model with all its weights, from safetensors only; an adapter is merged into its base.

    Raises:
        ValueError: The model is missing, damaged or incomplete, or an adapter's base is missing or has changed.
    """
    from transformers import AutoModelForCausalLM

    place, revision = _pinned(path)
    if is_model_folder(Path(place)):
        check_model_folder(Path(place))
    if (base := adapter_base(Path(place))) is not None:
        if quantise:
            raise ValueError(f"model.path: {path} is an adapter; export it with --merge to hold it in 4 bits")
        # Merged in full precision, like a merged export, so that both have the same weights in any precision.
        model = load_model(checked_base(Path(place), base), attention, torch.float32, trust_remote_code)
        return _with_adapter(model, Path(place)).to(dtype)  # type: ignore[arg-type]
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "use_safetensors": True, **revision}
    if quantise:
        options |= four_bits()
    try:
        with without_table():
            model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                place, dtype=dtype, attn_implementation=attention, output_loading_info=True, **options
            )
    except Exception as error:  # as above
        raise ValueError(_not_loadable("model", path, error)) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"model.path: {path!r} has no weights for {missing[0]} and {len(missing) - 1} others, which would be drawn "
            "at random; does config.json fit its files?"
        )
    tell_leftover(path, loading["unexpected_keys"])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False  # the files have a separate head, whatever their config says
    return model


def checked_base(folder: Path, base: str) -> str:
    """Return the base of an adapter, checked to be what the adapter was trained on.

    Raises:
        ValueError: The base is missing or has changed.
    """
    wanted = noted_base_hash(folder)
    if not base.startswith(LAB) and wanted is not None and "@" not in wanted and not Path(base).is_dir():
        raise ValueError(f"model.path: the base of the adapter {folder} is not there: put {base} back")
    if wanted is not None and content_hash(base, None) != wanted:
        raise ValueError(f"model.path: the base of the adapter {folder} has changed since it was trained: {base}")
    return base


@torch.no_grad()
def _with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    config = adapter_config(folder)
    weights = {name.removeprefix(PEFT_PREFIX): weight for name, weight in load_file(folder / ADAPTER).items()}
    check_pairs(str(folder / ADAPTER), weights, config["r"])
    for name, a, b in pairs(weights):
        try:
            layer = model.get_submodule(name.rpartition(".")[0])
            weight = cast(torch.nn.Parameter, layer.weight)
        except AttributeError:
            raise ValueError(f"{folder / ADAPTER} changes {name}, which its base does not have") from None
        if sum(one is weight for _, one in model.named_parameters(remove_duplicate=False)) > 1:
            layer.weight = weight = torch.nn.Parameter(weight.clone())  # tied: the other name has no weight of its own
            model.config.tie_word_embeddings = False
        try:
            weight.copy_(merged(weight, a, b, config["lora_alpha"] / config["r"], is_transposed(layer)))
        except ValueError as error:
            raise ValueError(f"{folder / ADAPTER}, {name}: {error}") from None
    return model


def four_bits() -> dict[str, Any]:
    """Return transformers' config for weights in 4 bits on this process's GPU.

    Raises:
        ValueError: There is no GPU, or bitsandbytes is not installed.
    """
    import importlib.util
    import os

    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing or not torch.cuda.is_available():
        lacks = f"{missing[0]} (pip install sftlab[qlora])" if missing else "a GPU"
        raise ValueError(f"model.adapter.quantise: weights in 4 bits need {lacks}; leave it out for plain LoRA")
    from transformers import BitsAndBytesConfig

    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**kind, bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def is_random(path: str | None, config: Mapping[str, Any] | None) -> bool:
    """Return whether the weights of a model are random and not stored anywhere."""
    return path is None or config is not None or path in LAB_SIZES


def content_hash(path: str | None, config: Mapping[str, Any] | None, trust_remote_code: bool = False) -> str:
    """Hash the weights that training starts from: the files of a folder, the commit of a hub id.

    Random weights are determined by the architecture and the seed; an adapter by its files and its base.
    """
    if path is None or config is not None:
        return "random"
    if path in LAB_SIZES:
        return digest("random", _architecture(load_config(path, None).to_dict()))
    folder = Path(resolve_path(path))
    if not folder.is_dir():
        commit = getattr(load_config(path, None, trust_remote_code), "_commit_hash", None)
        return f"{hub_name(path)[0]}@{commit}"
    files = sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind) if path.is_file())
    configs = [folder / name for name in ("config.json", "adapter_config.json")]
    read = [json.loads(path.read_text(encoding="utf-8")) for path in configs if path.is_file()]
    if (base := adapter_base(folder)) is not None:
        read[-1] |= {"base_model_name_or_path": content_hash(base, None, trust_remote_code)}
    weights = [file_hash(path) for path in files]
    return digest(weights, [_architecture(config) for config in read])


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's config without its provenance."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"}


def generation_ends(path: str | None) -> list[int]:
    """Return the token ids at which generation ends according to the model's generation_config.json.

    Raises:
        ValueError: The file is damaged.
    """
    from transformers import GenerationConfig

    if path is None or path in LAB_SIZES:
        return []
    place, revision = _pinned(path)
    if Path(place).is_dir() and not (Path(place) / "generation_config.json").is_file():
        return generation_ends(adapter_base(Path(place)))  # PEFT leaves it with the base
    try:
        ends = cast(Any, GenerationConfig).from_pretrained(place, **revision).eos_token_id
    except Exception as error:  # as above
        if not Path(place).is_dir():  # a hub model without the file
            return []
        raise ValueError(_not_loadable("generation_config.json", path, error)) from error
    listed = ends if isinstance(ends, list) else [ends]
    return [end for end in listed if isinstance(end, int) and not isinstance(end, bool) and end >= 0]


def build_backbone(
    path: str | None,
    config: dict[str, Any] | None,
    attention: str | None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    quantise: str | None = None,
) -> PreTrainedModel:
    """Build the model with its weights: pretrained if ``path`` names a folder or id, random otherwise.

    ``attention`` None takes transformers' default for the architecture.

    Caching is off: with it, transformers silently stops separating packed examples.

    Raises:
        ValueError: The path holds no model.
    """
    from transformers import AutoModelForCausalLM

    register_attention()
    if not is_random(path, config):
        model = load_model(cast(str, path), attention, dtype, trust_remote_code, quantise)
    elif quantise:
        raise ValueError("model.adapter.quantise: random weights are not held in 4 bits; name a model in model.path")
    else:
        built = load_config(path, config)
        model = AutoModelForCausalLM.from_config(built, attn_implementation=attention, dtype=dtype)
    model.config.use_cache = False
    return model.train()


def count_parameters(config: PretrainedConfig) -> int:
    """Count the parameters of an architecture without allocating them."""
    return sum(p.numel() for p in empty_model(config).parameters())


def empty_model(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Build an architecture without weights; ``options`` are those of ``from_config``."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)


def _not_loadable(what: str, path: str, error: Exception) -> str:
    where = "the folder" if Path(path).is_dir() else "no such folder here, and as a hub id"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return f"model.path: no {what} could be loaded from {path!r} ({where}: {reason})"
