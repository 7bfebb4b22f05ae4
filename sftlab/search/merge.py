"""Merged specialists: their weights averaged by the shares of a composition, scored without any training.

Weights are averaged as in model soups (Wortsman et al., arXiv 2203.05482); as a proxy of mixing data: arXiv 2602.04937.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftlab.files import copy_folder, read_jsonl, write_text
from sftlab.run.opening import finished_stages
from sftlab.screen import tell_progress
from sftlab.search.factors import Shares
from sftlab.search.observation import Trial
from sftlab.search.search import Search


def merged_scores(search: Search, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Score the merged specialists of each composition, by ability; results are cached one by one.

    Raises:
        ValueError: The space has no shares, or more than one simplex, or a specialist is missing.
    """
    simplices = [factor for factor in search.spec.space.factors if isinstance(factor, Shares)]
    if len(simplices) != 1:
        raise ValueError("--proxy merge: it averages by the shares of one simplex; the search has none, or several")
    specialists = {ability: _specialist(search, ability) for ability in simplices[0].abilities}
    kept = search.folder / "exhibits" / "proxies" / "merge.scores.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, tuple[float, ...]] = {}
    for trial in trials:
        assert trial.point is not None
        wanted[trial.name] = trial.point[search.spec.space.factors.index(simplices[0])]  # type: ignore[assignment]
    rows = [row for row in (read_jsonl(kept) if kept.is_file() else []) if row.get("of") == _sources(specialists)]
    done = {tuple(row["shares"]): row["scores"] for row in rows}
    tasks: dict[str, Any] = {}
    for number, shares in enumerate(dict.fromkeys(wanted.values())):
        tell_progress("merged compositions scored", number, len(set(wanted.values())))
        if shares in done:
            continue
        tasks = tasks or _tasks(search)
        done[shares] = _scored(dict(zip(specialists.values(), shares, strict=True)), tasks)
        rows.append({"of": _sources(specialists), "shares": shares, "scores": done[shares]})
        write_text(kept, "".join(json.dumps(row) + "\n" for row in rows))
    return {name: dict(done[shares]) for name, shares in wanted.items()}


def _sources(specialists: Mapping[str, Path]) -> str:
    return " ".join(str(path) for path in specialists.values())


def _specialist(search: Search, ability: str) -> Path:
    """Return the exported model of the run that trained the ability alone, with the first seed."""
    names = [trial.name for trial in search.trials if trial.anchor and trial.anchor.alone == ability]
    for name in names:
        for run in sorted((search.folder / "runs").glob(f"{name}-*-seed={search.spec.seeds[0]}")):
            if stages := finished_stages(run):
                return stages[-1]
    raise ValueError(f"--proxy merge: {search.folder} has no finished run of {ability} alone; run the search first")


def _tasks(search: Search) -> dict[str, Any]:
    """Return the tasks of each ability in the search's runs."""
    from sftlab.callbacks.scores import ScoreAbilities
    from sftlab.cli import parse_objects

    config = next(iter(sorted((search.folder / "configs").glob("*.yaml"))))
    objects = parse_objects(["--config", str(config)])
    callbacks = objects.trainer_arguments.get("callbacks") or []
    scorers = [callback for callback in callbacks if isinstance(callback, ScoreAbilities)]
    if not scorers:
        raise ValueError("--proxy merge: the search's runs have no ScoreAbilities, so nothing says what to ask")
    return scorers[0].tasks_of(objects.data)


def _scored(parts: Mapping[Path, float], tasks: Mapping[str, Any]) -> dict[str, float]:
    from sftlab.evaluate.local import LocalModel
    from sftlab.evaluate.run import run_task

    found = {}
    with tempfile.TemporaryDirectory(prefix="sftlab-") as place:
        merged = Path(place) / "model"
        merge_weights(parts, merged)
        backend = LocalModel.from_folder(merged)
        for ability, task in tasks.items():
            rows, _, _ = run_task(task, backend, Path(place) / ability, {"stage": "merged", "ability": ability})
            score = rows[0].score()
            found[ability] = score.value / float(rows[0].best or 1.0)
    return found


def merge_weights(parts: Mapping[Path, float], to: Path) -> None:
    """Write the weighted average of models of one architecture; sums are in float32.

    Args:
        parts: Hugging Face folders of safetensors, with the weight of each; the weights add up to 1.
        to: The folder to create.

    Raises:
        ValueError: The models have different tensors.
    """
    import torch
    from safetensors.torch import load_file, save_file

    used = {folder: weight for folder, weight in parts.items() if weight > 0}
    first = next(iter(used))
    copy_folder(first, to)
    for file in sorted(first.glob("*.safetensors")):
        total: dict[str, torch.Tensor] = {}
        types: dict[str, torch.dtype] = {}
        for folder, weight in used.items():
            tensors = load_file(folder / file.name) if (folder / file.name).is_file() else {}
            if total and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in total.items()}:
                raise ValueError(f"--proxy merge: {folder} and {first} have different tensors")
            for name, tensor in tensors.items():
                types[name] = tensor.dtype
                total[name] = total.get(name, torch.zeros_like(tensor, dtype=torch.float32)) + weight * tensor.float()
        save_file({n: t.to(types[n]).contiguous() for n, t in total.items()}, to / file.name, {"format": "pt"})
