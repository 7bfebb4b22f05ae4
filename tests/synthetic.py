"""Studies made up from known curves, in the files that a real study leaves."""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ABILITIES = ("math", "code", "general")
FRACTIONS = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0)
Scores = Mapping[str, float]
Stage = tuple[str, Sequence[str], Scores]  # name, abilities trained in full, true score of every ability after it


class Maker:
    """Collects runs, then writes the folder."""

    def __init__(self, study: str, figures: list[str], factors: dict[str, list[Any]], seeds: list[int]) -> None:
        self.head: dict[str, Any] = {"study": study, "title": f"The {study} study", "question": "Does it hold?"}
        self.head |= {"figures": figures, "factors": factors, "seeds": seeds, "runs": []}
        self.results: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []
        self.verdicts: dict[str, list[dict[str, Any]]] = {}
        self.trained: set[str] = set()

    def run(
        self,
        config: str,
        seed: int,
        factors: dict[str, Any],
        stages: Sequence[Stage],
        num_problems: int = 200,
        loss: Callable[[str], float] | None = None,
        noise: float = 0.02,
    ) -> None:
        """A run whose answers are drawn with the true scores."""
        name = "/".join(
            [
                config,
                *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in factors.items()),
                f"seed={seed}",
            ]
        )
        self.head["runs"].append(name)
        about = {"study": self.head["study"], "run": name, "config": config, "seed": seed, "factors": factors}
        costs = []
        for index, (stage, full, truth) in enumerate(stages):
            last = index == len(stages) - 1
            here = {**about, "stage": stage, "stage_index": index, "last_stage": last, "step": 100 * (index + 1)}
            here |= {"config_hash": f"{zlib.crc32(name.encode()):08x}"}
            for ability, score in truth.items():
                generator = np.random.default_rng([zlib.crc32(f"{name}/{stage}/{ability}".encode())])
                true = float(np.clip(score + generator.normal() * noise, 0, 1))
                right = generator.random(num_problems) < true
                file = f"runs/{name}/{index}/lab_{ability}.problems.jsonl"
                self.verdicts[file] = [_verdict(ability, i, bool(r)) for i, r in enumerate(right)]
                self.results.append(here | _score(ability, right.astype(float), ability in full, file))
                if loss:
                    self.results.append(
                        here | _loss(ability, loss(ability) + generator.normal() * 0.01, ability in full)
                    )
            key = f"{stage}-{seed}" + ("" if index == 0 and len(stages) > 1 else name)
            cost = {"name": stage, "key": key, "tokens": 120_000 * len(full or "x"), "supervised_tokens": 40_000}
            costs.append(cost | {"seconds": 33.0 * len(full or "x"), "reused": key in self.trained})
            self.trained.add(key)
        self.costs.append(
            {k: about[k] for k in ("run", "config", "seed", "factors")}
            | {"status": "done", "stages": costs, "error": None}
        )

    def fail(self, config: str, seed: int, factors: dict[str, Any], status: str = "failed") -> None:
        """A run without results."""
        name = "/".join([config, *(f"{k}={v}" for k, v in factors.items()), f"seed={seed}"])
        self.head["runs"].append(name)
        error = (
            "Traceback (most recent call last):\n  ...\nRuntimeError: loss is <nan> at step 12"
            if status == "failed"
            else None
        )
        cost = {
            "run": name,
            "config": config,
            "seed": seed,
            "factors": factors,
            "status": status,
            "stages": [],
            "error": error,
        }
        self.costs.append(cost)

    def write(self, folder: Path) -> Path:
        """All files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json.dumps(self.head))
        for name, rows in (("results", self.results), ("costs", self.costs)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for file, rows in self.verdicts.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder


def _verdict(ability: str, uid: int, right: bool) -> dict[str, Any]:
    return {
        "task": f"lab_{ability}",
        "uid": f"{ability}-{uid}",
        "sample": 0,
        "extractor": "exact@1",
        "extracted": "x",
        "value": float(right),
        "reason": "",
        "category": "",
        "prompts": [f"question {uid}"],
        "answers": ["x"],
    }


def _score(ability: str, values: np.ndarray, full: bool, file: str) -> dict[str, Any]:
    n, mean, z = len(values), float(values.mean()), 1.959964
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return {
        "ability": ability,
        "task": f"lab_{ability}",
        "metric": "accuracy/exact@1",
        "headline": True,
        "value": mean,
        "standard_error": float(values.std(ddof=1)) / math.sqrt(n),
        "low": max(0, centre - half),
        "high": min(1, centre + half),
        "num_problems": n,
        "best": 1,
        "full": full,
        "problems": file,
    }


def _loss(ability: str, value: float, full: bool) -> dict[str, Any]:
    return {
        "ability": ability,
        "task": "held_out",
        "metric": "loss",
        "headline": False,
        "value": value,
        "standard_error": None,
        "low": None,
        "high": None,
        "num_problems": 100,
        "best": None,
        "full": full,
        "problems": None,
    }


def _saturating(fraction: float, full: float, alpha: float) -> float:
    return 1 - (1 - full) * fraction**-alpha


def scaling_study(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """RQ1: math is log-linear, code dips, general saturates; three sizes."""
    sizes = ["lab-tiny", "lab-small", "lab-base"]
    maker = Maker("rq1", ["scaling"], {"fraction": list(FRACTIONS), "size": sizes}, list(seeds))
    for size, lift in zip(sizes, (0.0, 0.08, 0.16), strict=True):
        for ability in ABILITIES:
            for i, fraction in enumerate(FRACTIONS):
                truth = {
                    "math": 0.75 + lift + 0.07 * math.log2(fraction),
                    "code": (0.2, 0.5, 0.3, 0.6, 0.7)[i] + lift,
                    "general": _saturating(fraction, 0.8 + lift, 0.25),
                }
                for seed in seeds:
                    factors = {"fraction": fraction, "size": size}
                    if size == "lab-base" and ability == "code" and fraction == 1.0 and seed == seeds[-1]:
                        maker.fail(f"single_{ability}", seed, factors)
                        continue
                    stage: Stage = (
                        ability,
                        [ability] if fraction == 1 else [],
                        {a: truth[a] if a == ability else 0.02 for a in ABILITIES},
                    )
                    loss = 0.4 + 0.3 * fraction**-0.2 - lift
                    maker.run(f"single_{ability}", seed, factors, [stage], loss=lambda _, loss=loss: loss)
    return maker.write(folder)


def mixed_study(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """RQ2: mixing gains below 1/16 and costs above, crossing at 2^-4 exactly; two sizes."""
    sizes = ["lab-tiny", "lab-base"]
    maker = Maker("rq2", ["single_against_mixed"], {"fraction": list(FRACTIONS), "size": sizes}, list(seeds))
    for size in sizes:
        for fraction in FRACTIONS:
            single = 0.75 + 0.06 * math.log2(fraction) + 0.1 * (size == "lab-base")
            gain = -0.03 * (math.log2(fraction) + 4)
            for seed in seeds:
                factors = {"fraction": fraction, "size": size}
                for ability in ABILITIES:
                    maker.run(f"single_{ability}", seed, factors, [(ability, [], {ability: single})])
                maker.run("mixed", seed, factors, [("mixed", [], dict.fromkeys(ABILITIES, single + gain))])
    return maker.write(folder)


def ratio_study(folder: Path) -> Path:
    """RQ3: specialised scores follow their own amount, general ones theirs."""
    maker = Maker("rq3", ["ratio"], {"k": list(FRACTIONS)}, [1])
    for k in FRACTIONS:
        grown, full, small = 0.85 + 0.07 * math.log2(k), 0.85, 0.5
        for config, special, general in (
            ("full_general", grown, 0.9),
            ("full_specialised", full, 0.9 + 0.04 * math.log2(k)),
            ("small_general", grown, small),
        ):
            truth = {"math": special, "code": special - 0.1, "general": general}
            maker.run(config, 1, {"k": k}, [("all", [], truth)])
    return maker.write(folder)


def k_study(folder: Path, seeds: Sequence[int] = (1, 2, 3), figures: Sequence[str] = ("k",)) -> Path:
    """The replay sweep: k keeps the specialised abilities and costs general ones from 1/4 on."""
    ks = [0.0, 1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0]
    maker = Maker("k-sweep", list(figures), {"k": ks}, list(seeds))
    kept, general = (0.02, 0.3, 0.55, 0.75, 0.85, 0.9), (0.95, 0.95, 0.94, 0.92, 0.85, 0.7)
    for i, k in enumerate(ks):
        for seed in seeds:
            first: Stage = ("specialised", ["math", "code"], {"math": 0.92, "code": 0.9, "general": 0.02})
            full = ["general", *(["math", "code"] if k == 1 else [])]
            second: Stage = ("general", full, {"math": kept[i], "code": kept[i] - 0.02, "general": general[i]})
            maker.run("dmt", seed, {"k": k}, [first, second])
    return maker.write(folder)


def strategies_study(folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    """RQ4: sequential forgets, DMT keeps; one run failed, one is missing."""
    maker = Maker("rq4", ["strategies"], {}, list(seeds))
    for seed in seeds:
        for ability in ABILITIES:
            truth = {name: 0.9 if name == ability else 0.01 for name in ABILITIES}
            maker.run(f"{ability}_only", seed, {}, [(ability, [ability], truth)])
        maker.run("multi_task", seed, {}, [("all", ABILITIES, {"math": 0.88, "code": 0.86, "general": 0.85})])
        code: Stage = ("code", ["code"], {"math": 0.0, "code": 0.9, "general": 0.0})
        math_: Stage = ("math", ["math"], {"math": 0.9, "code": 0.2, "general": 0.0})
        maker.run(
            "sequential",
            seed,
            {},
            [code, math_, ("general", ["general"], {"math": 0.05, "code": 0.02, "general": 0.92})],
        )
        special: Stage = ("specialised", ["math", "code"], {"math": 0.9, "code": 0.9, "general": 0.02})
        maker.run(
            "mixed_sequential",
            seed,
            {},
            [special, ("general", ["general"], {"math": 0.06, "code": 0.05, "general": 0.91})],
        )
        if seed == seeds[-1] and len(seeds) > 2:
            maker.fail("dmt", seed, {})
            continue
        maker.run("dmt", seed, {}, [special, ("general", ["general"], {"math": 0.7, "code": 0.75, "general": 0.91})])
    if len(seeds) > 2:
        maker.fail("multi_task", 9, {}, "missing")
    return maker.write(folder)


def count_study(folder: Path) -> Path:
    """Equal count and equal proportion alike, but for general at 1/256."""
    maker = Maker("equal", ["equal_count"], {"fraction": list(FRACTIONS[:4])}, [1, 2])
    for fraction in FRACTIONS[:4]:
        for seed in (1, 2):
            score = 0.8 + 0.06 * math.log2(fraction)
            for config, extra in (("proportional", 0.0), ("equal_count", 0.3 if fraction == 1 / 256 else 0.0)):
                truth = {"math": score, "code": score, "general": score + extra}
                maker.run(config, seed, {"fraction": fraction}, [("all", [], truth)], noise=0.0)
    return maker.write(folder)


def leave_one_out_study(folder: Path) -> Path:
    """Without an ability's data it is lost, and the others do not change."""
    maker = Maker("loo", ["leave_one_out"], {}, [1])
    for config in ("all", *(f"without_{ability}" for ability in ABILITIES)):
        truth = {ability: 0.02 if config == f"without_{ability}" else 0.85 for ability in ABILITIES}
        maker.run(config, 1, {}, [("all", [a for a in ABILITIES if config != f"without_{a}"], truth)], noise=0.0)
    return maker.write(folder)


STUDIES = {
    "scaling": scaling_study,
    "single_against_mixed": mixed_study,
    "ratio": ratio_study,
    "k": k_study,
    "strategies": strategies_study,
    "equal_count": count_study,
    "leave_one_out": leave_one_out_study,
}
