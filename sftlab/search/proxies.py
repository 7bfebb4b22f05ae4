"""Cheap proxies of runs, tested against the runs that a search has made anyway.

    merge      the specialists' weights averaged by the shares of a composition, scored without training
    held_out   the loss on held-out examples instead of the score
    FOLDER     runs of another search or study with the same compositions: a smaller model, a part of the budget

Results are written to <search>/exhibits/proxies/; the search's report shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sftlab.report.evidence import Evidence, read_evidence
from sftlab.report.exhibit import Cell, Exhibit, Table
from sftlab.report.rows import HELD_OUT
from sftlab.report.text import estimate_text, number, slug
from sftlab.search.decision import WEIGHTED
from sftlab.search.observation import Trial
from sftlab.search.outcome import weighted
from sftlab.search.search import Search
from sftlab.stats.ranks import rank_correlation, regret

FEWEST = 4  # fewest compositions for a correlation


@dataclass(frozen=True, eq=False)
class Pair:
    """One composition with its real and its proxy scores.

    Attributes:
        name: Name of its runs.
        real: Measured score of each ability.
        proxy: The proxy's value for each ability; higher is better.
    """

    name: str
    real: Mapping[str, float]
    proxy: Mapping[str, float]


def proxy_report(search: Search, kind: str) -> str:
    """Test a proxy against the runs of a search; return the result in words.

    Raises:
        ValueError: The search has no runs, or the proxy lacks what it needs.
    """
    search.read()
    if not search.decisions:
        raise ValueError(f"--proxy: {search.folder} has no runs yet; run the search first")
    trials = [trial for trial in search.trials if trial.point is not None and trial.why != "verification"]
    if kind == "merge":
        from sftlab.search.merge import merged_scores

        trials = [t for t in trials if not (t.anchor and t.anchor.alone)]  # a specialist is not an average of others
        pairs = _pairs(search, trials, merged_scores(search, trials))
        title, about = (
            "Proxy: merged specialists",
            "weighted averages of the specialists' weights, scored without training",
        )
    elif kind == "held_out":
        pairs = _pairs(search, trials, _held_out(read_evidence(search.folder), trials))
        title, about = "Proxy: held-out loss", "minus the loss on held-out examples, instead of the score"
    else:
        folder = Path(kind)
        if not (folder / "study.json").is_file():
            raise ValueError(f"--proxy: {kind!r} is neither merge nor held_out nor the folder of a search or study")
        pairs = _pairs(search, trials, _elsewhere(read_evidence(folder), search, trials))
        title, about = f"Proxy: {folder.name}", f"runs of {folder.name} with the same compositions"
    if len(pairs) < FEWEST:
        raise ValueError(
            f"--proxy {kind}: {len(pairs)} compositions have both, at least {FEWEST} are needed for a correlation"
        )
    exhibit = _exhibit(search, kind, title, about, pairs)
    to = search.folder / "exhibits" / "proxies"
    to.mkdir(parents=True, exist_ok=True)
    exhibit.write(to, slug(Path(kind).name))
    return "\n".join([title, *(f"  {words.replace('**', '')}" for words in exhibit.findings)])


def _pairs(search: Search, trials: Sequence[Trial], proxy: Mapping[str, Mapping[str, float]]) -> list[Pair]:
    observations = search.site.observations(trials)
    found = []
    for trial in trials:
        mine = [o.values for o in observations if o.trial == trial.name]
        if trial.name in proxy:
            real = {ability: fmean(values[ability] for values in mine) for ability in mine[0]}
            found.append(Pair(trial.name, real, proxy[trial.name]))
    return found


def _held_out(evidence: Evidence, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for trial in trials:
        rows = [r for r in evidence.final if r.config == trial.name and r.task == HELD_OUT and r.value is not None]
        losses = {a: -fmean(float(r.value or 0) for r in rows if r.ability == a) for a in {r.ability for r in rows}}
        if losses:
            found[trial.name] = losses
    if not found:
        raise ValueError("--proxy held_out: no run has a held-out loss; set val_fraction of the abilities in base")
    return found


def _elsewhere(evidence: Evidence, search: Search, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Return scores of runs elsewhere whose factors equal those of a trial."""
    found = {}
    for trial in trials:
        assert trial.point is not None
        grid = search.spec.space.grid(trial.point)
        wanted = {name: _plain(one["values"]) for name, one in grid.items()}
        rows = [
            r for r in evidence.final
            if r.task != HELD_OUT and r.value is not None
            and all(name in r.factors and _same(r.factors[name], value) for name, value in wanted.items())
        ]  # fmt: skip
        if rows:
            abilities = dict.fromkeys(r.ability for r in rows)
            found[trial.name] = {
                a: fmean(float(r.value or 0) / float(r.best or 1) for r in rows if r.ability == a) for a in abilities
            }
    return found


def _plain(values: Any) -> Any:
    from sftlab.study.study import plain_number

    return plain_number(next(iter(values)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) < 1e-9
    return str(a) == str(b)


def _exhibit(search: Search, kind: str, title: str, about: str, pairs: Sequence[Pair]) -> Exhibit:
    abilities = [a for a in pairs[0].real if all(a in pair.proxy for pair in pairs)]
    if not abilities:
        raise ValueError(f"--proxy {kind}: no ability has both in all compositions")
    weights = {a: search.spec.weights.get(a, 0.0) for a in abilities}
    columns = {a: [(pair.proxy[a], pair.real[a]) for pair in pairs] for a in abilities}
    if any(weights.values()):
        columns[WEIGHTED] = [(weighted(_only(p.proxy, abilities), weights), weighted(_only(p.real, abilities), weights))
                             for p in pairs]  # fmt: skip
    rows, numbers, findings = [], list[dict[str, Cell]](), []
    for name, values in columns.items():
        proxy_N, real_N = np.array(values, dtype=float).T
        found, lost = rank_correlation(proxy_N, real_N), regret(proxy_N, real_N)
        spread = float(real_N.max() - real_N.min())
        chosen = pairs[int(proxy_N.argmax())].name
        rows.append([name, estimate_text(found), number(lost, 1, signed=True), number(spread, 1, signed=True), chosen])
        told: dict[str, Cell] = {"of": name, "spearman": found.value, "low": found.low, "high": found.high}
        numbers.append(told | {"regret": lost, "spread": spread, "num_compositions": len(pairs)})
        findings.append(
            f"{name}: rank correlation **{estimate_text(found)}** over {len(pairs)} compositions; taking what the "
            f"proxy ranks first loses {100 * lost:.1f} of {100 * spread:.1f} points."
        )
    header = ["", "rank correlation", "regret", "best minus worst", "what it ranks first"]
    notes = [
        f"The proxy: {about}.",
        "Rank correlation: Spearman's, 95 % interval by bootstrap over compositions. Regret: measured best minus the "
        "measured score of what the proxy ranks first; the noise of runs is in both.",
    ]
    each: list[dict[str, Cell]] = [
        {"runs": pair.name, **{f"{a} proxy": pair.proxy[a] for a in abilities},
         **{f"{a} measured": pair.real[a] for a in abilities}}
        for pair in pairs
    ]  # fmt: skip
    shown = [[str(row["runs"]), *(f"{float(row[k] or 0):.3f}" for k in row if k != "runs")] for row in each]
    tables = [
        Table("proxy", title, header, rows, notes, numbers),
        Table("proxy-compositions", "Proxy and measured, by composition", list(each[0]), shown, [], each, folded=True),
    ]
    return Exhibit(title, findings, tables)


def _only(values: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: values[name] for name in names}
