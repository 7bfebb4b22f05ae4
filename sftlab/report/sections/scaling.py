"""Scores and held-out losses against the amount of data, with fits and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sftlab.report.evidence import SPECIALISTS, Evidence, Series
from sftlab.report.exhibit import Cell, Table
from sftlab.report.figures import Line, LinePanel, line_figure
from sftlab.report.lines import Lines, lines_along, lines_drawing, points_in
from sftlab.report.rows import Panel
from sftlab.report.section import Drawing, Figure, Section, interval_words, panel_label, panel_title
from sftlab.report.text import estimate_text, number, p_text
from sftlab.stats.fits import Curve, Fit, Shape, fits_of, shape_of
from sftlab.stats.interval import Estimate

Key = tuple[Panel, str]  # a panel and the label of a line in it
POWER, LINE = "solid", (0, (1, 1.5))  # styles of fitted curves


class Scaling(Figure):
    """Score against the amount of data, for each ability and size, with fits.

    Args:
        axis: The factor that is the amount.
        single: Configs that train one ability alone, ``{ability}`` standing for its name; an ability that has such
            runs is shown by them, any other by all runs.
    """

    config_arguments = ("single",)
    factor_arguments = ("axis",)

    def __init__(self, axis: str = "fraction", single: str | Sequence[str] = SPECIALISTS) -> None:
        self.axis, self.single = axis, (single,) if isinstance(single, str) else tuple(single)
        self.xlabel = "fraction of the data" if axis == "fraction" else axis

    def section(self, evidence: Evidence) -> Section:
        """Show scores first, then losses."""
        section = Section("scaling", "Score against the amount of data")
        section.missing = evidence.missing(evidence.configs)
        for name, panels in (("score", evidence.panels), ("loss", evidence.loss_panels)):
            lines = {panel: self._own_lines(evidence, panel) for panel in panels}
            lines = {panel: found for panel, found in lines.items() if found}
            if lines:
                section.parts += self._parts(evidence, name, lines, section)
        if not section.parts:
            section.missing.append(f"no run with a factor named {self.axis} has a score")
        return section

    def _own_lines(self, evidence: Evidence, panel: Panel) -> dict[str, Line]:
        """Return the lines of an ability: of its specialists if there are any, else of all configs."""
        own = evidence.specialists(panel.ability, self.single)
        return lines_along(evidence, panel, own or [Series(c) for c in evidence.configs], self.axis, named=not own)

    def _parts(
        self, evidence: Evidence, name: str, lines: dict[Panel, dict[str, Line]], section: Section
    ) -> list[Drawing | Table]:
        what = "Score" if name == "score" else "Loss on held-out data"
        title = f"{what} against {'fraction' if self.axis == 'fraction' else self.axis}"
        of_what = "the fraction of its data" if self.axis == "fraction" else self.axis
        caption = f"{what} of each ability against {of_what}. {interval_words(points_in(lines.values()))}"
        parts: list[Drawing | Table] = [
            lines_drawing(evidence, f"scaling-{name}", title, caption, lines, self.axis, self.xlabel)
        ]
        curves = {
            (panel, label): curve_of(panel, line) for panel, found in lines.items() for label, line in found.items()
        }
        fits = {key: fits_of(curve) for key, curve in curves.items()}
        shapes = {key: shape_of(curve) for key, curve in curves.items()}
        if any(fits.values()):
            parts.append(_fit_drawing(evidence, name, self.axis, self.xlabel, lines, curves, fits))
            parts.append(_fit_table(name, fits))
        parts.append(_verdict_table(name, curves, shapes))
        known = [p for p, found in lines.items() if any(shapes[p, label].verdict != "undecided" for label in found)]
        section.findings += [_verdict_words(panel, lines[panel], shapes) for panel in known]
        return parts


def curve_of(panel: Panel, line: Line) -> Curve:
    """Return the points of a line for the fits; a point at 0 has no position on a log axis."""
    kept = [(x, p) for x, p in line if x > 0]
    x_P, mean_P, error_P = np.array([(x, p.value, p.error) for x, p in kept], dtype=float).reshape(-1, 3).T
    return Curve(x_P, mean_P, error_P, panel.best)


def _verdict_words(panel: Panel, lines: Lines, shapes: dict[Key, Shape]) -> str:
    """Return one sentence for an ability, its lines grouped by verdict."""
    measure, sign = ("loss on held-out data", -1) if panel.best is None else ("score", 1)
    by_verdict: dict[str, list[str]] = {}
    for label in lines:
        shape, (scale, digits) = shapes[panel, label], _scale(panel)
        change = estimate_text(Estimate(sign * shape.slope.value), digits, scale, signed=True)
        slope = "" if shape.verdict == "undecided" else f"({change}{' points' * (panel.best == 1)} per doubling)"
        where = "" if label == "score" else f"at {label}"
        by_verdict.setdefault(shape.verdict, []).append(" ".join(filter(None, [where, slope])))
    texts = [f"**{verdict}** {', '.join(labels)}".strip() for verdict, labels in by_verdict.items()]
    return f"{panel.ability}, {measure} against the amount of data: {'; '.join(texts)}."


def _fit_drawing(
    evidence: Evidence,
    name: str,
    axis: str,
    xlabel: str,
    lines: Mapping[Panel, Lines],
    curves: dict[Key, Curve],
    fits: dict[Key, list[Fit]],
) -> Drawing:
    row = []
    numbers: list[dict[str, Cell]] = []
    for panel, found in lines.items():
        fitted = []
        for label in found:
            curve = curves[panel, label]
            for fit in fits[panel, label]:
                grid_F = np.geomspace(curve.fraction_P[0], curve.fraction_P[-1], 60)
                values_F = fit.predict(curve, grid_F)
                fitted.append((label, grid_F, values_F, POWER if fit.form == "power law" else LINE))
                pairs = zip(grid_F.tolist(), values_F.tolist(), strict=True)
                about = _about(panel, label) | {"form": fit.form}
                numbers += [about | {axis: x, "fitted": y} for x, y in pairs]
        row.append(LinePanel(panel_title(panel), panel_label(panel), panel.best, found, fitted, joined=False))
    caption = "Means with 95 % intervals and the curves fitted: power law with offset (solid), log-linear (dotted)."
    figure, spots = line_figure([row], xlabel, lambda x: evidence.tick(axis, x))
    return Drawing(f"scaling-{name}-fits", "Fits", caption, figure, numbers, spots)


def _verdict_table(name: str, curves: dict[Key, Curve], shapes: dict[Key, Shape]) -> Table:
    rows, numbers = [], []
    for (panel, label), curve in curves.items():
        shape, (scale, digits) = shapes[panel, label], _scale(panel)
        slope = estimate_text(shape.slope, digits, scale, signed=True)
        tests = [p_text(shape.p_monotone), p_text(shape.p_line)]
        rows.append([panel_title(panel), label, str(len(curve)), shape.verdict, slope, *tests])
        record: dict[str, Cell] = {"num_points": len(curve), "verdict": shape.verdict, **_ends("slope", shape.slope)}
        numbers.append(_about(panel, label) | record | {"p_rising": shape.p_monotone, "p_line": shape.p_line})
    notes = [
        "Verdict, the first that holds: irregular where p rising < 0.05 (dips that a rising curve rarely shows); flat "
        "where the interval of the slope holds 0; log-linear where p line >= 0.05; else monotone. Undecided with fewer "
        "than three points or without standard errors. A large p is also what few or noisy points give.",
        "Gain per doubling: slope over log2 of the fraction"
        + (", in points where the best is 100 %." if name == "score" else "; positive where the loss falls."),
    ]
    header = ["ability", "line", "points", "verdict", "gain per doubling", "p rising", "p line"]
    return Table(f"scaling-{name}-verdicts", "Shape of the curves", header, rows, notes, numbers)


def _fit_table(name: str, fits: dict[Key, list[Fit]]) -> Table:
    rows, numbers = [], []
    for (panel, label), found in fits.items():
        scale, digits = _scale(panel)
        for fit in found:
            known = fit.parameters.items()
            texts = [f"{k} = {estimate_text(e, *((2, 1) if k == 'alpha' else (digits, scale)))}" for k, e in known]
            errors = [number(fit.rmse, panel.best), number(fit.held_out, panel.best, signed=True)]
            rows.append([panel_title(panel), label, fit.form, "; ".join(texts), *errors])
            record = _about(panel, label) | {"form": fit.form, "rmse": fit.rmse, "held_out_error": fit.held_out}
            for key, estimate in known:
                record |= _ends(key, estimate)
            numbers.append(record)
    notes = [
        "log-linear: score = a + b log2(fraction), a being the score at all the data; power law: loss = E + A "
        "fraction^-alpha, the loss of a score being its distance from the best. Rates in percent.",
        "held out: prediction minus measurement at the largest fraction, by a fit that never saw it.",
        "Intervals: 95 %, parametric bootstrap over the standard errors of the means (the larger of that over seeds "
        "and that over problems).",
    ]
    title = f"Fits to the {'scores' if name == 'score' else 'held-out losses'}"
    header = ["ability", "line", "form", "fit", "rmse", "held out"]
    return Table(f"scaling-{name}-fits-table", title, header, rows, notes, numbers)


def _scale(panel: Panel) -> tuple[float, int]:
    return (100, 1) if panel.best == 1 else (1, 3)


def _about(panel: Panel, label: str) -> dict[str, Cell]:
    return {"ability": panel.ability, "task": panel.task, "line": label}


def _ends(name: str, estimate: Estimate) -> dict[str, Cell]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
