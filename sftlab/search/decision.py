"""The numbers behind a decision: what is inside noise of the best, which factors matter, every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftlab.search.factors import Choice, Number, Shares, Value, share_text
from sftlab.search.proposal import Beliefs
from sftlab.search.space import Point, Space
from sftlab.stats.interval import middle

MOST_GROUPS = 7  # values of a factor that a slice shows
WEIGHTED = "weighted mean"


@dataclass(frozen=True, eq=False)
class Axis:
    """One direction of the space.

    Attributes:
        name: Name of the factor, or of the ability whose share it is.
        is_share: Whether it is the share of an ability.
        value_C: Value of each candidate on the axis: a number, or an index into the options.
        labels: The options, if values are not numbers.
    """

    name: str
    is_share: bool
    value_C: np.ndarray
    labels: tuple[str, ...] = ()
    is_log: bool = False

    def text(self, value: float) -> str:
        """Return a value as readable text."""
        if self.labels:
            return self.labels[int(value)]
        return share_text(value) if self.is_share else Number(self.name, (), (0.0, 1.0)).text(value)

    def groups(self) -> list[tuple[float, np.ndarray]]:
        """Group candidates by their value; if there are many values, neighbours share a group."""
        places = np.unique(self.value_C)
        if len(places) <= 2 * MOST_GROUPS + 1:
            return [(float(place), self.value_C == place) for place in places]
        edges = np.quantile(self.value_C, np.linspace(0, 1, MOST_GROUPS + 1))
        number_C = np.clip(np.searchsorted(edges, self.value_C, side="right") - 1, 0, MOST_GROUPS - 1)
        return [(float(self.value_C[number_C == i].mean()), number_C == i) for i in np.unique(number_C)]


def axes_of(space: Space, candidates: Sequence[Point]) -> list[Axis]:
    """Return every direction of a space."""
    found = []
    for number, factor in enumerate(space.factors):
        values: list[Value] = [point[number] for point in candidates]
        if isinstance(factor, Shares):
            for i, ability in enumerate(factor.abilities):
                found.append(Axis(ability, True, np.array([v[i] for v in values], dtype=float)))  # type: ignore[index]
        elif isinstance(factor, Choice):
            names = tuple(factor.options)
            found.append(Axis(factor.name, False, np.array([names.index(str(v)) for v in values], dtype=float), names))
        else:
            is_log = isinstance(factor, Number) and factor.is_log
            found.append(Axis(factor.name, False, np.array(values, dtype=float), is_log=is_log))
    return found


def ranges_of(beliefs: Beliefs, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """For each axis, return which values have a candidate that is inside noise of the best."""
    inside_C, best = beliefs.inside_noise(), beliefs.best()
    found = []
    for axis in axes:
        all_places = np.unique(axis.value_C)
        kept = np.unique(axis.value_C[inside_C])
        found.append(
            {
                "axis": axis.name,
                "is_share": axis.is_share,
                "best": axis.text(axis.value_C[best]),
                "all": _places_text(axis, all_places),
                "low": axis.text(kept.min()) if not axis.labels else "",
                "high": axis.text(kept.max()) if not axis.labels else "",
                "options": [axis.labels[int(place)] for place in kept] if axis.labels else [],
                "is_noise": bool(
                    len(kept) == len(all_places)
                    or (not axis.labels and kept.min() == all_places.min() and kept.max() == all_places.max())
                ),
            }
        )
    return found


def _places_text(axis: Axis, places: np.ndarray) -> str:
    if axis.labels:
        return ", ".join(axis.labels[int(place)] for place in places)
    return axis.text(places[0]) if len(places) == 1 else f"{axis.text(places[0])} to {axis.text(places[-1])}"


def slices_of(beliefs: Beliefs, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Compute each ability, and the weighted mean, along each axis: the mean over all else, and the axis's effect.

    The effect is the difference between the value with the highest mean and the one with the lowest, with its interval.
    """
    found = []
    scores = {name: beliefs.score_DAC[:, i] for i, name in enumerate(beliefs.abilities)}
    for axis in axes:
        groups = axis.groups()
        for name, draws_DC in {**scores, WEIGHTED: beliefs.utility_DC}.items():
            curve_DL = np.stack([draws_DC[:, mine].mean(1) for _, mine in groups], 1)
            mean_L = curve_DL.mean(0)
            low_L, high_L = middle(curve_DL)
            change_D = curve_DL[:, mean_L.argmax()] - curve_DL[:, mean_L.argmin()]
            low, high = middle(change_D).tolist()
            found.append(
                {
                    "axis": axis.name,
                    "is_share": axis.is_share,
                    "is_log": axis.is_log,
                    "of": name,
                    "places": [place for place, _ in groups],
                    "texts": [axis.text(place) for place, _ in groups],
                    "mean": mean_L.tolist(),
                    "low": low_L.tolist(),
                    "high": high_L.tolist(),
                    "change": float(change_D.mean()),
                    "change_low": low,
                    "change_high": high,
                }
            )
    return found


def candidates_of(beliefs: Beliefs, space: Space) -> list[dict[str, Any]]:
    """Return every candidate with its prediction: whether it keeps the constraints, is inside noise, on the front."""
    inside_C, chance_C, front_C = beliefs.inside_noise(), beliefs.chance(), front_share(beliefs)
    likely_C = beliefs.likely()
    low_C, high_C = middle(beliefs.utility_DC)
    low_AC, high_AC = middle(beliefs.score_DAC)
    mean_AC, utility_C = beliefs.score_DAC.mean(0), beliefs.utility_DC.mean(0)
    best = beliefs.best()
    return [
        {
            "text": space.text(point),
            "rest": [f.text(v) for f, v in zip(space.factors, point, strict=True) if not isinstance(f, Shares)],
            "shares": [float(share) for f, v in zip(space.factors, point, strict=True) if isinstance(f, Shares)
                       for share in v],  # type: ignore[union-attr]
            "scores": {
                name: [float(mean_AC[a, c]), float(low_AC[a, c]), float(high_AC[a, c])]
                for a, name in enumerate(beliefs.abilities)
            },
            WEIGHTED: [float(utility_C[c]), float(low_C[c]), float(high_C[c])],
            "chance": float(chance_C[c]),
            "likely": bool(likely_C[c]),
            "inside_noise": bool(inside_C[c]),
            "on_front": float(front_C[c]),
            "best": bool(c == best),
        }
        for c, point in enumerate(beliefs.candidates)
    ]  # fmt: skip


def front_share(beliefs: Beliefs, num_draws: int = 64) -> np.ndarray:
    """Compute the share of draws in which no other candidate dominates: as good in all abilities, better in one [C]."""
    on_C = np.zeros(len(beliefs.candidates))
    for score_AC in beliefs.score_DAC[:num_draws]:
        at_least_CC = (score_AC[:, :, None] <= score_AC[:, None, :]).all(0)
        better_CC = (score_AC[:, :, None] < score_AC[:, None, :]).any(0)
        on_C += ~(at_least_CC & better_CC).any(1)
    return on_C / min(num_draws, len(beliefs.score_DAC))
