"""The content of checkpoints and model folders, read without torch and without running any code in them.

A checkpoint is one file (a zip with ``data.pkl`` and one record a storage) or a folder of FSDP2 shards:

    step=000123.ckpt/
      .metadata       which tensor stands where in the shards, a pickle
      __0_0.distcp    the shard of process 0, and so on
      meta.pt         everything but weights and optimizer states, a checkpoint file

A pickle is a program. Here every class and function that it names is replaced by one that only stores its arguments, so
that untrusted checkpoints can be inspected; ``model.checkpoint`` loads those found complete.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = "sftlab"  # key of our part of a checkpoint
METADATA, META = ".metadata", "meta.pt"
ARCHITECTURE = "architecture"  # in a run's folder: the model without its weights
NOTE_FILE = "sftlab.json"  # in a Hugging Face folder of ours: the model's origin and its template
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
_OF_PLAIN_LORA = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha "
    "lora_dropout target_modules exclude_modules layers_to_transform layers_pattern bias init_lora_weights "
    "loftq_config eva_config megatron_core qalora_group_size runtime_config".split()
)
"""Keys that may have any value: they do not change how the adapter is added to the base's weights."""
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # others (pissa, olora, ...) change the base
_MAX_PICKLE_BYTES = 2**30
_BYTES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # all others: at least 1


@dataclass(frozen=True)
class Contents:
    """The content of a complete checkpoint.

    Attributes:
        step: Number of optimizer steps trained.
        entries: Its top-level entries; tensors and objects are placeholders.
        weights: Names of the model's tensors.
        can_resume: Whether ``fit`` wrote it, with loops and optimizer states.
    """

    step: int
    entries: Mapping[str, Any]
    weights: tuple[str, ...]
    can_resume: bool


def contents(path: Path) -> Contents:
    """Inspect a checkpoint.

    Raises:
        ValueError: It is missing, truncated, damaged or no checkpoint; the message says which.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return _contents(path.resolve(), path, stamps)


def is_whole(path: Path) -> bool:
    """Return whether ``fit`` can resume from a checkpoint."""
    try:
        return contents(path).can_resume
    except ValueError:
        return False


def is_sharded(path: Path) -> bool:
    """Return whether it is a folder of shards."""
    return path.is_dir()


@functools.lru_cache(maxsize=256)
def _contents(_place: Path, path: Path, _stamps: tuple[Any, ...]) -> Contents:
    try:
        if path.is_dir():
            weights, has_optimizer = _shards(path)
            entries = _file(path / META)
        else:
            entries = _file(path)
            weights = [name for name in entries.get("state_dict") or () if isinstance(name, str)]
            has_optimizer = bool(entries.get("optimizer_states"))
    except _Damaged as error:
        raise ValueError(f"{path} {error}") from None
    except Exception:  # garbage may raise anything
        raise ValueError(f"{path} is cut off or damaged, or was never a checkpoint") from None
    step = entries.get("global_step", -1)
    step = step if isinstance(step, int) else -1
    can_resume = has_optimizer and step >= 0 and "loops" in entries and isinstance(entries.get(STATE), dict)
    return Contents(step, entries, tuple(weights), can_resume)


class _Damaged(Exception):
    """What is wrong with a checkpoint, as the end of a sentence that begins with its path."""


class _Thing:
    """A placeholder for any object or function of a pickle; does nothing."""

    name = ""

    def __new__(cls, *arguments: Any, **_: Any) -> _Thing:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None  # type: ignore[attr-defined]
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """List method."""

    def extend(self, items: Iterable[Any]) -> None:
        """List method."""

    def add(self, item: Any) -> None:
        """Set method."""


class _Inert(pickle.Unpickler):
    """Unpickles plain values; everything else becomes a ``_Thing``."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.storages: list[tuple[str, int]] = []  # key and smallest size in bytes

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that does nothing, for any name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type("Thing", (_Thing,), {"name": name})

    def persistent_load(self, pid: Any) -> Any:
        """Record a storage: ("storage", type, key, device, number of elements)."""
        _, kind, key, _, count = pid
        self.storages.append((str(key), int(count) * _BYTES.get(kind.name.removesuffix("Storage"), 1)))
        return pid


def _unpickled(content: bytes) -> tuple[Any, list[tuple[str, int]]]:
    reader = _Inert(content)
    try:
        return reader.load(), reader.storages
    except Exception:  # garbage may raise anything
        raise _Damaged("is damaged: its table of contents cannot be read") from None


def _file(path: Path) -> dict[str, Any]:
    """Return the top-level entries of a checkpoint file, after checking that all storages are there."""
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if info.compress_type == 0}
        found = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1 or sizes[found[0]] > _MAX_PICKLE_BYTES:
            raise _Damaged("is not a checkpoint: a zip file, but of something else")
        entries, storages = _unpickled(archive.read(found[0]))
    root = found[0].removesuffix("data.pkl")
    for key, least in storages:
        if sizes.get(f"{root}data/{key}", -1) < least:
            raise _Damaged("is damaged: some of its tensors are missing")
    if not isinstance(entries, dict):
        raise _Damaged("is not a checkpoint of a run: it holds no entries by name")
    return entries


def _shards(path: Path) -> tuple[list[str], bool]:
    """Return the weights' names in a complete folder of shards, and whether it has optimizer states."""
    for name in (METADATA, META):
        if not (path / name).is_file():
            raise _Damaged(f"is not a complete sharded checkpoint: it has no {name}")
    if (path / METADATA).stat().st_size > _MAX_PICKLE_BYTES:
        raise _Damaged(f"is damaged: its {METADATA} is too large")
    metadata, _ = _unpickled((path / METADATA).read_bytes())
    state = getattr(metadata, "state", None)
    places = state.get("storage_data") if isinstance(state, dict) else None
    tensors = state.get("state_dict_metadata") if isinstance(state, dict) else None
    if not isinstance(places, dict) or not isinstance(tensors, dict) or not places:
        raise _Damaged(f"is damaged, or no sharded checkpoint: its {METADATA} lists no tensors")
    for place in places.values():
        file = getattr(place, "state", None)
        try:
            name, end = str(file["relative_path"]), int(file["offset"]) + int(file["length"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            raise _Damaged(f"is damaged: its {METADATA} cannot be read") from None
        if "/" in name or not (path / name).is_file() or (path / name).stat().st_size < end:
            raise _Damaged(f"is damaged: its shard {name} is missing or cut off")
    names = [name for name in tensors if isinstance(name, str)]
    weights = [name.removeprefix("state_dict.") for name in names if name.startswith("state_dict.")]
    return weights, any(name.startswith("optimizer_0.") for name in names)


_WHOLE_NUMBERS = frozenset(("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"))


def check_model_folder(path: Path) -> None:
    """Check what ``from_pretrained`` would load, so that damage is reported with its cause.

    Raises:
        ValueError: The config is invalid, there are no weights in safetensors, or a weight file is damaged.
    """
    if adapter_base(path) is not None:
        if not (path / ADAPTER).is_file():
            raise ValueError(f"{path} has an adapter's config and no {ADAPTER}")
        _check_safetensors(path / ADAPTER)
        return
    config = _json_object(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path / 'config.json'} describes no model: it has no model_type")
    names = [file.name for file in weight_files(path)]
    for name in names:
        kinds = _check_safetensors(path / name)
        whole = [tensor for tensor, kind in kinds.items() if tensor.endswith(".weight") and kind in _WHOLE_NUMBERS]
        if whole and not config.get("quantization_config"):
            raise ValueError(
                f"{path / name} holds {whole[0]} as {kinds[whole[0]]}, and config.json does not say how it was "
                "quantised: as they stand the numbers are not weights; take the model as it was before that"
            )


def weight_files(path: Path) -> list[Path]:
    """Return the weight files of a model folder, all of which exist; other files are ignored.

    Raises:
        ValueError: Some are missing.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        places = _json_object(index).get("weight_map")
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    else:
        names = ["model.safetensors"]
    if not names or not all((path / name).is_file() and "/" not in name for name in names):
        pickled = ", ".join(sorted(file.name for file in path.glob("*.bin")))
        hint = f"; {pickled} is a pickle, which may run code: save the model as safetensors" if pickled else ""
        raise ValueError(f"{path} has no complete weights: {names[0] if names else index.name} is missing{hint}")
    return [path / name for name in names]


def is_model_folder(path: Path) -> bool:
    """Return whether a folder is a Hugging Face folder with a model or an adapter."""
    return (path / "config.json").is_file() or (path / ADAPTER_CONFIG).is_file()


def adapter_base(folder: Path) -> str | None:
    """Return the base of the adapter in a folder: a folder, a hub id or a base of the lab; None without an adapter.

    A folder with a model config is a model, as for transformers, even if it also contains an adapter.

    Raises:
        ValueError: The adapter's config is damaged.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    config = _json_object(path)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path} is damaged: it names no base")
    if (folder / NOTE_FILE).is_file():
        named = _json_object(folder / NOTE_FILE).get("base")
        if isinstance(named, str) and named.startswith("lab:"):
            return named
    return f"{base}@{revision}" if isinstance(revision, str) and revision else base


def adapter_config(folder: Path) -> dict[str, Any]:
    """Read the config of the adapter in a folder.

    Raises:
        ValueError: It is damaged, or not plain LoRA on linear layers.
    """
    path = folder / ADAPTER_CONFIG
    config = _json_object(path)
    plain = {"peft_type": ("LORA",), "bias": ("none", None), "init_lora_weights": _KEEPS_BASE}
    odd = [name for name, values in plain.items() if config.get(name) not in values]
    odd += sorted(name for name, value in config.items() if value and name not in _OF_PLAIN_LORA)
    numbers = all(isinstance(config.get(name), (int, float)) for name in ("r", "lora_alpha")) and config.get("r")
    if odd or not numbers:
        raise ValueError(
            f"{path} describes no plain LoRA ({', '.join(odd) or 'r, lora_alpha'}): merge it with PEFT first"
        )
    return config


_OF_NOTES = {"base": str, "base_hash": str, "template": str, "datasets": list, "training": dict}


def read_note(folder: Path) -> dict[str, Any]:
    """Read the origin of an exported folder; empty if there is no note.

    Raises:
        ValueError: The note is damaged.
    """
    path = folder / NOTE_FILE
    note = _json_object(path) if path.is_file() else {}
    wrong = [key for key, kind in _OF_NOTES.items() if not isinstance(note.get(key, kind()), kind)]
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]!r} is {type(note[wrong[0]]).__name__}")
    return note


def noted_base_hash(folder: Path) -> str | None:
    """Return the hash of the base that an adapter of ours was trained on; None if it is not recorded."""
    return read_note(folder).get("base_hash")


def noted_template(folder: Path | str) -> str | None:
    """Return the template that an exported folder was trained with; None for other folders and ids.

    Raises:
        ValueError: The note is damaged.
    """
    note = Path(folder) / NOTE_FILE
    if not note.is_file():
        return None
    template = _json_object(note).get("template")
    if not isinstance(template, str):
        raise ValueError(f"{note} is damaged: it names no template")
    return template


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    return found


def _check_safetensors(path: Path) -> dict[str, str]:
    """Check that a file has the length that its header implies; return the types of its tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= min(size, 2**28) else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        raise ValueError(f"{path} is cut off or damaged, or no safetensors file") from None
    if size != 8 + length + end:
        raise ValueError(f"{path} is cut off or damaged: it has {size:,} bytes and should have {8 + length + end:,}")
    return {name: str(entry.get("dtype")) for name, entry in tensors.items()}
