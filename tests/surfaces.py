"""A site whose runs cost nothing: scores of a known surface with noise of a known size, killed where a test wants."""

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml
from checkpoints import write_checkpoint

from sftlab.results.score import ScoreRow
from sftlab.run.folder import checkpoint_path
from sftlab.search.observation import Observation
from sftlab.search.search import Search, Site
from sftlab.search.spec import read_search
from sftlab.study.executors import Executor
from sftlab.study.job import Outcome

SIZES = {"math": 3072, "code": 1024, "general": 2048}
FACTORS = {
    "share": {"shares": {"math": [0, 1], "code": [0, 1], "general": [0, 1]}, "step": 0.2},
    "k": {"keys": ["schedule.k"], "levels": [0, "1/64", "1/16", "1/4", 1], "scale": "log"},
}


def conflict(share, k):
    """Scores that rise with an ability's own share and fall where another takes over; code gains from math."""
    math, code, general = share
    return {
        "math": 0.9 * math / (math + 0.15) - 0.35 * general**2 + 0.08 * k,
        "code": 0.8 * code / (code + 0.1) + 0.15 * math * code - 0.2 * general**2,
        "general": 0.7 * general / (general + 0.2) - 0.25 * k * (1 - general),
    }


def flat(share, k):
    return {"math": 0.5, "code": 0.6, "general": 0.4}


class Killed(BaseException):
    """What a kill is to the code that it hits."""


class Synthetic(Site):
    """Runs are made at once and kept in a file of the folder, so that another process finds them."""

    def __init__(self, spec, truth, folder, noise=0.02, kill_at=None):
        self.spec, self.truth, self.noise, self.kill_at = spec, truth, noise, kill_at
        self.folder = Path(folder) / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.calls = 0

    def tokens(self, trials, more):
        known = {(t.point, t.anchor and t.anchor.name, s) for t in trials for s in t.seeds}
        return 1000 * len({(t.point, t.anchor and t.anchor.name, s) for t in more for s in t.seeds} - known)

    def saved_tokens(self, trials):
        return 1000 * sum(t.num_runs for t in trials), self.tokens([], trials)

    def carry_out(self, trials):
        for trial in trials:
            for seed in trial.seeds:
                path = self.folder / f"{trial.name}-{seed}"
                if not path.exists():
                    self.calls += 1
                    if self.calls == self.kill_at:
                        raise Killed
                    path.touch()

    def scores(self, trial):
        if trial.point is None:
            share = [1.0 if a == trial.anchor.alone else 0.0 for a in SIZES]
            share = share if any(share) else [1 / 3] * 3
            return self.truth(share, 0.0)
        values = dict(zip([f.name for f in self.spec.space.factors], trial.point, strict=True))
        k = next((f.unit(values["k"]) for f in self.spec.space.factors if f.name == "k"), 0.0)
        return self.truth(values.get("share", (1 / 3, 1 / 3, 1 / 3)), k)

    def observations(self, trials):
        found = []
        for trial in trials:
            for seed in trial.seeds:
                assert (self.folder / f"{trial.name}-{seed}").exists()
                text = f"{trial.point} {trial.anchor and trial.anchor.name if trial.point is None else ''} {seed}"
                random = np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
                values = {a: v + self.noise * random.normal() for a, v in self.scores(trial).items()}
                found.append(Observation(trial.name, seed, values))
        return found


def spec_of(folder, **content):
    """A search file, read."""
    path = Path(folder) / "search.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    full = {"base": "base.yaml", "factors": FACTORS, "budget": {"runs": 24}, **content}
    path.write_text(yaml.safe_dump(full, sort_keys=False))
    return read_search(path, SIZES)


def search_of(folder, truth=conflict, noise=0.02, kill_at=None, tell=lambda _: None, **content):
    spec = spec_of(folder, **content)
    return Search(spec, Synthetic(spec, truth, folder, noise, kill_at), Path(folder), tell)


def regret_of(search, truth):
    """How far the true weighted mean of the proposal lies below the best of all candidates."""
    space, weights = search.spec.space, search.spec.weights
    total = sum(weights.values())

    def utility(point):
        values = dict(zip([f.name for f in space.factors], point, strict=True))
        k = next((f.unit(values["k"]) for f in space.factors if f.name == "k"), 0.0)
        return sum(weights[a] * v for a, v in truth(values["share"], k).items()) / total

    best = search.beliefs().best()
    return max(map(utility, search.candidates)) - utility(search.candidates[best])


class Instant(Executor):
    """Jobs that are done at once: a checkpoint for each stage, scores of the known surface from the run's config."""

    kill_at = 0  # the start that raises, counted over all of a process; 0: none
    started = 0
    ungraded = ""  # the ability of which no answer could be graded

    def start(self, job):
        Instant.started += 1
        if Instant.started == Instant.kill_at:
            raise Killed
        config = yaml.safe_load(Path(job.config_file).read_text())
        weights = config["data"]["policy"]["init_args"]["weights"]
        scores = conflict([weights[a] for a in SIZES], 0.0)
        seed = config["seed_everything"]
        folder, rows = Path(job.folder), []
        for stage in job.stages:
            write_checkpoint(checkpoint_path(folder, stage.end_step, stage.name), stage.end_step)
            for ability, value in scores.items():
                text = f"{sorted(weights.items())} {seed} {ability}"
                noise = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=2).digest()) / 2**16 - 0.5
                about = {"ability": ability, "stage": stage.name, "step": stage.end_step}
                value = None if ability == self.ungraded else max(0.0, value + 0.02 * noise)
                row = ScoreRow(task=f"lab_{ability}", metric="accuracy", value=value,
                               standard_error=0.01, low=None, high=None, headline=True, **about)  # fmt: skip
                rows.append(row.to_dict())
            losses = {f"val/loss/{ability}": 2 - value for ability, value in scores.items()}
            (folder / "metrics.jsonl").write_text(
                json.dumps({"step": stage.end_step, "stage/seconds": 1.0, **losses}) + "\n"
            )
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return job.name

    def first_done(self, handles):
        return handles[0]

    def outcome(self, handle):
        return Outcome(handle, "", 1.0)
