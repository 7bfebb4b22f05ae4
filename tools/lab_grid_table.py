"""The tables of ``tools/lab_grid``: the grid, searches over it, strategies, proxies; in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lab_grid_search import (
    ABILITIES,
    Cell,
    Found,
    Lines,
    by_cell,
    covered,
    noise_of,
    regret_noise,
    scores_of,
    searches,
    shuffled,
    spec_of,
    utility,
)

from sftlab.stats.interval import student
from sftlab.stats.ranks import rank_correlation, regret

RUNS = 21  # of a search: a fifth of the grid
NUM_SEARCHES = 20
WEIGHTED = "mean of the three"


def table(lines: Lines, sizes: Mapping[str, int], parts: int, grid_seed: int, again_seed: int) -> str:
    """All that there are runs of."""
    cells = by_cell(lines)
    first = {cell: runs[grid_seed] for cell, runs in cells.items() if grid_seed in runs}
    fresh = {cell: runs[again_seed] for cell, runs in cells.items() if again_seed in runs}
    noise_A = noise_of(cells)
    found = [grid(first, noise_A, parts, len(lines))]
    if len(first) == (parts + 1) * (parts + 2) // 2:
        found.append(searched(cells, first, fresh, noise_A, sizes, parts, again_seed))
    found += [strategies(lines, cells), proxies(lines, cells, grid_seed)]
    return "\n\n".join(part for part in found if part)


def _shares(cell: Cell) -> str:
    return " / ".join(f"{part / sum(cell):.0%}" for part in cell)


def _row(*texts: object) -> str:
    return f"| {' | '.join(map(str, texts))} |"


def _percent(score_A: np.ndarray) -> list[str]:
    return [f"{100 * score:.1f}" for score in score_A]


def grid(first: Mapping[Cell, np.ndarray], noise_A: np.ndarray, parts: int, num_runs: int) -> str:
    """The best, the worst and the corners of the grid."""
    ranked = sorted(first, key=lambda cell: -utility(first[cell]))
    corners = [cell for cell in first if max(cell) == parts]
    shown = {**dict.fromkeys(ranked[:5], "of the best five"), **dict.fromkeys(ranked[-1:], "worst")}
    shown |= dict.fromkeys(corners, "alone")
    rows = [
        _row(_shares(cell), why, *_percent(first[cell]), f"{100 * utility(first[cell]):.1f}")
        for cell, why in shown.items()
    ]
    noise = ", ".join(f"{a} {100 * n:.1f}" for a, n in zip(ABILITIES, noise_A, strict=True))
    title = f"**The grid: {len(first)} compositions; {num_runs} runs in all**"
    spread = f"Between seeds, standard deviation in points: {noise}, mean {100 * regret_noise(noise_A):.2f}."
    header = _row("math / code / general", "", *ABILITIES, "mean")
    return "\n".join([title, "", spread, "", header, _row(*["---"] * 6), *rows])


def searched(
    cells: Mapping[Cell, Mapping[int, np.ndarray]],
    first: Mapping[Cell, np.ndarray],
    fresh: Mapping[Cell, np.ndarray],
    noise_A: np.ndarray,
    sizes: Mapping[str, int],
    parts: int,
    again_seed: int,
) -> str:
    """What searches with a fifth of the runs find, and whether they see that shuffled scores have no effect."""
    spec, seeds = spec_of(parts, sizes, RUNS), range(NUM_SEARCHES)
    given = {cell: {s: run for s, run in runs.items() if s != again_seed} for cell, runs in cells.items()}
    found = list(searches(spec, given, parts, seeds))
    sigma = regret_noise(noise_A)
    best = max(first, key=lambda cell: utility(first[cell]))
    lost = np.array([utility(first[best]) - utility(first[one.best]) for one in found])
    inside = (lost <= 1.96 * sigma * 2**0.5).mean()
    used = np.mean([one.num_runs for one in found])
    told = [
        f"**{NUM_SEARCHES} searches with {RUNS} of {len(first)} runs (used: {used:.1f})**",
        "",
        f"- regret against the grid's best ({_shares(best)}): mean {100 * lost.mean():.2f} points, largest "
        f"{100 * lost.max():.2f}",
        f"- inside the noise of a difference of two runs ({196 * sigma * 2**0.5:.2f} points) in {inside:.0%}",
        *_held_against(found, fresh, noise_A, best),
    ]
    forms, taken = Counter(form for one in found for form in one.forms), Counter(_shares(one.best) for one in found)
    told.append(f"- forms: {dict(forms)}; taken most often: {dict(taken.most_common(5))}")
    told.append(f"- effect seen in {np.mean([one.has_effect for one in found]):.0%}")
    flat = [next(iter(searches(spec, shuffled(given, seed), parts, [seed]))) for seed in seeds]
    claimed = np.mean([one.has_effect for one in flat])
    told.append(f"- scores shuffled among runs: an effect claimed in {claimed:.0%} of {len(flat)}")
    return "\n".join(told)


def _held_against(
    found: Sequence[Found], fresh: Mapping[Cell, np.ndarray], noise_A: np.ndarray, best: Cell
) -> list[str]:
    """What runs that the searches were not given say of them."""
    if not fresh:
        return []
    within = np.stack([covered(one, fresh, noise_A) for one in found])
    each = ", ".join(f"{a} {share:.1%}" for a, share in zip(ABILITIES, within.mean((0, 1)), strict=True))
    single = within.mean((1, 2))
    told = [
        f"- fresh runs of {len(fresh)} compositions inside the 95 % intervals, the noise of one run added: "
        f"{within.mean():.1%} ({each}); of single searches {single.min():.1%} to {single.max():.1%}"
    ]
    again = np.array([utility(fresh[one.best]) for one in found if one.best in fresh])
    if best in fresh and len(again):
        lost = utility(fresh[best]) - again
        inside = (lost <= 1.96 * regret_noise(noise_A) * 2**0.5).mean()
        told.append(
            f"- by fresh runs the grid's best has {100 * utility(fresh[best]):.1f}, what searches take "
            f"{100 * again.mean():.1f} ({len(again)} of {len(found)} searches): regret at most {100 * lost.max():.1f}, "
            f"inside noise in {inside:.0%}; the best of fresh runs has {100 * max(map(utility, fresh.values())):.1f}"
        )
    return told


def strategies(lines: Lines, cells: Mapping[Cell, Mapping[int, np.ndarray]]) -> str:
    """Strategies at equal steps: mean and Student's interval over seeds, and the difference from proportional."""
    runs: dict[str, dict[int, np.ndarray]] = {}
    for (name, seed), line in lines.items():
        if not line["cell"]:
            runs.setdefault(name, {})[seed] = scores_of(line)
    if "proportional" not in runs:
        return ""
    rows = []
    base = runs["proportional"]
    for name, of_seed in sorted(runs.items(), key=lambda pair: -np.mean([utility(s) for s in pair[1].values()])):
        scores = np.stack(list(of_seed.values()))
        both = [seed for seed in of_seed if seed in base]
        apart = [100 * (utility(of_seed[seed]) - utility(base[seed])) for seed in both]
        told = "-" if name == "proportional" else _mean(apart, signed=True)
        rows.append(
            _row(name, *(_mean((100 * scores[:, a]).tolist()) for a in range(len(ABILITIES))),
                 _mean([100 * utility(score) for score in scores]), told)
        )  # fmt: skip
    header = _row("strategy", *ABILITIES, "mean", "mean - proportional")
    return "\n".join(["**Strategies at equal steps**", "", header, _row(*["---"] * 6), *rows])


def _mean(values: Sequence[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    if len(values) < 2:
        return f"{values[0]:{sign}.1f} (one seed)"
    mean = student(list(values))
    low, high = (mean.low, mean.high) if signed else (max(mean.low, 0.0), min(mean.high, 100.0))
    return f"{mean.value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def proxies(lines: Lines, cells: Mapping[Cell, Mapping[int, np.ndarray]], grid_seed: int) -> str:
    """Rank correlation and regret of what is cheap."""
    real = {cell: runs[grid_seed] for cell, runs in cells.items() if grid_seed in runs}
    merged = {tuple(line["cell"]): scores_of(line) for (name, _), line in lines.items() if name.startswith("merge")}
    small = {cell: runs[grid_seed] for cell, runs in by_cell(lines, "lab:small").items()}
    held_out = {
        tuple(line["cell"]): -np.array([line["val_loss"][a] for a in ABILITIES])
        for (name, seed), line in lines.items()
        if line["cell"] and line["base"] == "lab:base" and seed == grid_seed and "val_loss" in line
    }
    other = {cell: runs[max(runs)] for cell, runs in cells.items() if len(runs) > 1}
    rows = []
    kinds = {"merged specialists": merged, "lab:small for lab:base": small, "held-out loss": held_out}
    for kind, proxy in {**kinds, "another seed of the same": other}.items():
        both = [cell for cell in proxy if cell in real]
        if len(both) < 4:
            continue
        p_NA, r_NA = np.stack([proxy[c] for c in both]), np.stack([real[c] for c in both])
        columns: list[tuple[str, Any, Any]] = [(a, p_NA[:, i], r_NA[:, i]) for i, a in enumerate(ABILITIES)]
        columns.append((WEIGHTED, p_NA.mean(1), r_NA.mean(1)))
        told = []
        for _, p_N, r_N in columns:
            found = rank_correlation(p_N, r_N)
            told.append(f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
        rows.append(
            _row(
                kind,
                len(both),
                *told,
                f"{100 * regret(columns[-1][1], columns[-1][2]):.1f} of {100 * np.ptp(r_NA.mean(1)):.1f}",
            )
        )
    header = _row("proxy", "compositions", *ABILITIES, WEIGHTED, "regret, points")
    return "\n".join(["**Proxies: rank correlation with measured runs**", "", header, _row(*["---"] * 7), *rows])
