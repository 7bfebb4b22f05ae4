"""Checkpoints, written atomically and loaded without running code, as one file or as a folder of FSDP2 shards.

save   one file: torch.save to a partial beside it, flush, fsync, rename
shards: every process writes into one partial folder, process 0 fsyncs and renames it
load   always with weights_only; shards through a reader and a planner that build tensors and plain values alone
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.optim import Optimizer

from sftlab.files import discard, whole_file
from sftlab.model.contents import META, METADATA, contents, is_sharded

_DCP = "torch.distributed.checkpoint"
_ALLOWED = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("collections", "OrderedDict"),
    (f"{_DCP}.filesystem", "_StorageInfo"), (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    *((f"{_DCP}.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
    )),
}  # fmt: skip


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoint files, named only when complete; also reads folders of shards."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint file beside its final name and rename it.

        Raises:
            OSError: The disk is full or not writable.
        """
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
        return None

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint as plain values and tensors on the CPU, whatever ``weights_only`` says.

        Raises:
            ValueError: The checkpoint is missing, damaged, or holds other objects.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, weights_only=True)
        return gathered(Path(path)) if is_sharded(Path(path)) else load_file(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Rename before removing, so that an interrupted removal leaves no partial checkpoint."""
        if "://" in str(path):
            return super().remove_checkpoint(path)
        return discard(Path(path))


def write_whole(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints atomically, unless it has a checkpoint plugin of the user's."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def load_file(path: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint file; tensors stay on disk until they are used.

    Raises:
        ValueError: The file is missing, damaged, or holds objects that can only be built by running code.
    """
    contents(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line), "")
        raise ValueError(f"{path} cannot be loaded without running code in it: {reason.strip()}") from None


class ShardReader(dcp.FileSystemReader):
    """Reads shards whose metadata contains only torch's own descriptions of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the metadata.

        Raises:
            ValueError: The metadata is damaged, or would run code.
        """
        path = Path(self.path) / METADATA
        metadata = _Descriptions(path).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{path} is not a table of contents of a sharded checkpoint")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Descriptions(pickle.Unpickler):
    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(path.read_bytes()))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # named like this in Python 3.13 only
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _ALLOWED:
            raise ValueError(
                f"{self._path} asks for {module}.{name} to be run: this checkpoint is not one of sftlab, it is refused"
            )
        return super().find_class(module, name)

    def load(self) -> Any:
        try:
            return super().load()
        except ValueError:
            raise
        except Exception:  # garbage may raise anything
            raise ValueError(f"{self._path} is damaged") from None


class ShardPlanner(DefaultLoadPlanner):
    """Loads tensors and plain values; torch's own planner would unpickle anything."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Store a plain value.

        Raises:
            ValueError: It is an object that can only be built by running code.
        """
        name = read_item.dest_index.fqn
        try:
            loaded = torch.load(value, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            raise ValueError(f"checkpoint: {name} is not a plain value; the checkpoint is refused") from None
        *parents, last = self.mappings[name] if self.flatten_state_dict else (name,)
        target: Any = self.original_state_dict
        for key in parents:
            target = target[key]
        target[last] = loaded


def load_shards(state: dict[str, Any], path: Path, is_alone: bool = False) -> None:
    """Fill a state from the shards, on all processes, or on this one alone if ``is_alone``.

    Raises:
        ValueError: The checkpoint is damaged or would run code.
    """
    _load(state, path, ShardPlanner(), is_alone)


def _load(state: dict[str, Any], path: Path, planner: ShardPlanner, is_alone: bool) -> None:
    contents(path)
    ShardReader(path).read_metadata()  # checked first: dcp would continue after such an error and log a traceback
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is intended
    try:
        dcp.load(state, storage_reader=ShardReader(path), planner=planner, no_dist=is_alone)
    except CheckpointException as error:  # the errors of each process
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, ValueError)), causes[0]) from None


def gathered(path: Path) -> dict[str, Any]:
    """Return a folder of shards as the checkpoint that one process would have written.

    Raises:
        ValueError: The checkpoint is damaged or would run code.
    """
    contents(path)
    metadata = ShardReader(path).read_metadata()
    flat = {name: _empty(entry) for name, entry in metadata.state_dict_metadata.items()}
    _load(flat, path, ShardPlanner(flatten_state_dict=False), is_alone=True)
    state = _nested(flat, metadata.planner_data)
    optimizers = [state[name] for name in sorted(state) if name.startswith("optimizer_")]
    return {
        **load_file(path / META),
        "state_dict": state["state_dict"],
        "optimizer_states": [_numbered(optimizer) for optimizer in optimizers],
    }


def _empty(entry: Any) -> Any:
    is_tensor = isinstance(entry, TensorStorageMetadata)
    return torch.empty(entry.size, dtype=entry.properties.dtype) if is_tensor else io.BytesIO()


def _nested(flat: dict[str, Any], paths: dict[str, tuple[str | int, ...]]) -> dict[str, Any]:
    """Rebuild nested dictionaries and lists from flat names."""
    root: dict[Any, Any] = {}
    for name, value in flat.items():
        *parents, last = paths[name]
        target = root
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value
    for optimizer in (value for name, value in root.items() if name.startswith("optimizer_")):
        groups = optimizer["param_groups"]
        optimizer["param_groups"] = [groups[number] for number in sorted(groups)]
    return root


def _numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state by parameter number, as torch saves it, instead of by name."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number_of = {name: number for number, name in enumerate(names)}
    state = {number_of[name]: values for name, values in optimizer.get("state", {}).items()}
    groups = [{**group, "params": [number_of[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": state, "param_groups": groups}


def named_state(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state by parameter name instead of number."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: values for number, values in state["state"].items()}, "param_groups": groups}
