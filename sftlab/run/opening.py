"""Opening a model: resolves a path or a name to a Hugging Face folder.

lightning_logs/dmt                                   the run's last finished stage, or else its newest checkpoint
lightning_logs/dmt/stages/1-general                  a stage, as any other Hugging Face folder
lightning_logs/dmt/checkpoints/step=000123.ckpt      a checkpoint file or a folder of shards, exported on the way
meta-llama/Llama-3.2-1B@main                         a hub id, perhaps with a branch, tag or commit
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sftlab.files import partial_name, read_jsonl, remove_stale
from sftlab.model.contents import (
    ARCHITECTURE,
    adapter_base,
    check_model_folder,
    contents,
    is_model_folder,
    read_note,
)
from sftlab.nearest import nearest
from sftlab.run.folder import complete_checkpoints, run_of

if TYPE_CHECKING:
    from sftlab.plan.ledger import LedgerRow
    from sftlab.results.score import ScoreRow


def model_folder(name: str | Path, stack: ExitStack, tell: Callable[[str], None] | None = None) -> str:
    """Resolve a name to a Hugging Face folder or a hub id.

    Args:
        name: A run, a stage, a checkpoint, a Hugging Face folder or a hub id.
        stack: Owns the temporary folder that a checkpoint is exported to.
        tell: Called with a message if the name is ambiguous.

    Raises:
        ValueError: It is none of these, or damaged; the message says which.
    """
    path = Path(name)
    if not path.exists():
        return str(name) if str(name).startswith("lab:") else _hub_id(str(name))
    if is_checkpoint(path):
        folder = _temporary_folder(path, stack)
        export_checkpoint(path, folder)
        return str(folder)
    if is_model_folder(path):
        check_model_folder(path)
        return str(path)
    if stages := finished_stages(path):
        check_model_folder(stages[-1])
        return str(stages[-1])
    if checkpoints := complete_checkpoints(path) if path.is_dir() else []:
        if tell is not None:
            tell(f"{path} has finished no stage; its checkpoint {checkpoints[-1].name} is taken")
        return model_folder(checkpoints[-1], stack)
    if (path / "stages.json").is_file():
        raise ValueError(f"checkpoint: {path} is a study; name one of its runs: {path}/runs/<run>")
    raise ValueError(f"checkpoint: {path} is not a run folder, stage, checkpoint or Hugging Face folder")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint of ``fit`` rather than a folder with a model in it."""
    return path.is_file() or path.suffix == ".ckpt" or (path / ".metadata").is_file()


def finished_stages(run: Path) -> list[Path]:
    """Return the folders of a run's exported stages, in order."""
    found = {int(match[1]): path for path in run.glob("stages/*") if (match := re.match(r"(\d+)-", path.name))}
    return [path for _, path in sorted(found.items()) if is_model_folder(path)]


class Form(NamedTuple):
    """Options of an export.

    Attributes:
        is_merged: Whether an adapter is merged into its base.
        dtype: float32, bf16 or fp16; None keeps that of the weights.
        max_shard_size: Maximum size of a file of weights, such as 5GB; None keeps the files.
    """

    is_merged: bool = False
    dtype: str | None = None
    max_shard_size: str | None = None


def export(name: str | Path, folder: Path, form: Form = Form()) -> None:  # noqa: B008 - it never changes
    """Export a run, a stage, a checkpoint or a Hugging Face folder to a Hugging Face folder.

    Args:
        name: The model.
        folder: The folder to write.
        form: Options.

    Raises:
        ValueError: The model does not exist or is damaged.
    """
    from sftlab.model.card import model_card
    from sftlab.model.rewrite import rewrite_folder

    with ExitStack() as stack:
        found = Path(model_folder(name, stack))
        if not found.is_dir():
            raise ValueError(f"--checkpoint: {name} is not a run, stage, checkpoint or Hugging Face folder here")
        run = run_of(found) or run_of(Path(name))
        ended = re.match(r"step=\d+-(.+)\.ckpt$", Path(name).name)
        stage = ended[1] if ended else re.sub(r"^\d+-", "", found.name)
        rows, scores = ([], []) if run is None else (_trained(run, stage), _scores(run, stage))
        if form.is_merged and adapter_base(found) is not None:
            from sftlab.model.export import write_merged

            whole = partial_name(folder.with_name(f"{folder.name}-whole"))
            stack.callback(shutil.rmtree, whole, ignore_errors=True)
            write_merged(whole, found)
            found = whole
        note = read_note(found) or {"base": found.name}
        rewrite_folder(found, folder, model_card(note, rows, scores), form.dtype, form.max_shard_size)


def export_checkpoint(path: Path, folder: Path, is_merged: bool = False) -> None:
    """Export a checkpoint to a Hugging Face folder.

    Args:
        path: A file or a folder of shards inside its run's folder; to be merged, also a folder with an adapter.
        folder: The folder to write.
        is_merged: Whether an adapter is merged into its base.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, or it is not inside a run's folder.
    """
    from sftlab.model.export import checkpoint_weights, write_folder, write_merged

    if is_merged and path.is_dir() and adapter_base(path) is not None:
        return write_merged(folder, path)
    weights = checkpoint_weights(path)
    run = run_of(path)
    if run is None or not (run / ARCHITECTURE / "config.json").is_file():
        where = run or path.parent.parent
        raise ValueError(f"--checkpoint: {where / ARCHITECTURE} is missing; name a checkpoint inside its run's folder")
    rows = _trained(run)
    apart = partial_name(folder.with_name(f"{folder.name}-adapter")) if is_merged else folder
    try:
        write_folder(apart, run / ARCHITECTURE, weights, rows, contents(path).entries.get("adapter"))
        if is_merged:
            is_adapter = adapter_base(apart) is not None
            write_merged(folder, apart) if is_adapter else apart.rename(folder)
    finally:
        if is_merged:
            shutil.rmtree(apart, ignore_errors=True)
    return None


def ledger_rows(run: Path) -> list[LedgerRow]:
    """Return what a run has trained, by stage and ability.

    Raises:
        ValueError: Its ledger.json is damaged.
    """
    from sftlab.plan.ledger import LedgerRow
    from sftlab.results.row import checked

    path = run / "ledger.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        return [checked(LedgerRow, row, str(path)) for row in content]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged; without it there is no table of what was trained") from None


def _trained(run: Path, stage: str = "") -> list[LedgerRow]:
    """Return what a run trained, up to the end of a stage if it has one of that name."""
    rows = ledger_rows(run)
    names = list(dict.fromkeys(row.stage for row in rows))
    return [row for row in rows if stage not in names or names.index(row.stage) <= names.index(stage)]


def _scores(run: Path, stage: str) -> list[ScoreRow]:
    """Return the scores of the model after a stage of a run."""
    from sftlab.results.score import ScoreRow

    path = run / "scores.jsonl"
    scores = [ScoreRow.from_dict(row, f"{path}, line {number}") for number, row in enumerate(read_jsonl(path), 1)]
    return [row for row in scores if row.stage == stage and not row.inside and row.value is not None]


def _temporary_folder(checkpoint: Path, stack: ExitStack) -> Path:
    """Create a folder that lives as long as ``stack``: in the checkpoint's run if it is writable, else in TMPDIR."""
    run = run_of(checkpoint)
    if run is None or not os.access(run, os.W_OK):
        made = tempfile.TemporaryDirectory(prefix="sftlab-", ignore_cleanup_errors=True)
        return Path(stack.enter_context(made), "model")
    remove_stale(run)
    folder = partial_name(run / "opened")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _hub_id(name: str) -> str:
    """Return a name that is no file as a hub id, unless it was meant as a path.

    Raises:
        ValueError: It looks like a path, or is no valid hub id.
    """
    path = Path(name)
    is_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@\w[\w./-]*)?", name) and path.suffix != ".ckpt"
    if is_id and not (len(path.parts) > 1 and path.parent.is_dir()):
        return name
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    hint = f"; did you mean {path.parent / near}?" if near else ""
    raise ValueError(f"checkpoint: there is no {name}{hint}")
