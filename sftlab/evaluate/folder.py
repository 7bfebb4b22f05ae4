"""Where an evaluation's results go: one folder per model, which never takes the results of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sftlab.evaluate.run import model_of
from sftlab.files import MAX_NAME_BYTES, read_jsonl
from sftlab.fingerprint import file_hash

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.msgpack", "*.gguf")
_SHOWN = 8  # hex digits of the hash in a folder's name


def weights_hash(folder: Path) -> str:
    """Hash the content of a model's weights and tokenizer, and where answers end, wherever they are stored."""
    # The last two have the scale of an adapter, and where answers end.
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "sftlab.json",
             "adapter_config.json", "generation_config.json")  # fmt: skip
    found = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    files = sorted([*found, *(folder / name for name in names if (folder / name).is_file())])
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(file_hash, files))
    named = "\n".join(f"{path.name} {part}" for path, part in zip(files, parts, strict=True))
    return hashlib.blake2b(named.encode(), digest_size=8).hexdigest()


def default_folder(checkpoint: str, model: Path | None, about: Mapping[str, Any]) -> Path:
    """Return evaluations/<run>-<stage>-<hash of the weights>; other names if it is not a run.

    Args:
        checkpoint: The checkpoint as the user named it.
        model: The folder of its Hugging Face files; None for a hub id or a server's model.
        about: What was evaluated; see ``run_task``.
    """
    path = Path(checkpoint)
    if model is None or not path.exists():
        name = checkpoint.strip("/").replace("/", "--")
    elif path.suffix == ".ckpt":
        name = f"{_run_name(path.resolve().parent.parent)}-{path.stem}"
    elif model.parent.name == "stages":
        name = f"{_run_name(model.resolve().parent.parent)}-{model.name}"
    else:
        name = path.resolve().name
    digest = hashlib.blake2b(json.dumps(model_of(about), sort_keys=True).encode(), digest_size=8).hexdigest()
    name = "".join(c if c.isalnum() or c in "._=+-" else "-" for c in name).lstrip("-.") or "model"
    while len(name.encode()) > MAX_NAME_BYTES - _SHOWN - 1:
        name = name[1:]
    return Path("evaluations") / f"{name}-{str(about.get('weights') or digest)[:_SHOWN]}"


def _run_name(run: Path) -> str:
    """Return a run's name; for a run of a study, with the study's name."""
    parts = run.parts
    below = parts[len(parts) - parts[::-1].index("lightning_logs") :] if "lightning_logs" in parts else parts[-1:]
    return "-".join(below)


def require_own(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder that holds results of another model.

    Raises:
        ValueError: It holds such results; nothing was changed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to: {folder} is a file; name a folder")
    wanted = json.loads(json.dumps(model_of(about)))
    held = [model_of(_about(row)) for row in read_jsonl(folder / "scores.jsonl")]
    for path in sorted(folder.glob("*.answers.jsonl")):
        held += [head["model"] for head in read_jsonl(path)[:1] if isinstance(head.get("model"), dict)]
    if any(other != wanted for other in held):
        raise ValueError(f"--to: {folder} holds results of another model; name a new folder, nothing was changed")


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("checkpoint", "weights", "server") if row.get(name) is not None}
