"""The posterior after some runs: which composition to take, what is inside noise, and which runs to make next.

Beliefs are draws from the surfaces, joint over all candidates: candidates are compared within each draw, so that
errors which they share cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sftlab.search.effect import effect_p
from sftlab.search.observation import Observation, Trial, mean_of
from sftlab.search.space import Point, Space
from sftlab.search.spec import Constraint
from sftlab.search.surface import Surface, fit_surface
from sftlab.stats.interval import LEVEL, middle
from sftlab.stats.paired import holm

NUM_DRAWS = 512
LIKELY = 0.5  # a candidate keeps the constraints if it does so in at least this share of the draws


@dataclass(frozen=True, eq=False)
class Beliefs:
    """The posterior after some runs.

    Attributes:
        candidates: Points of the space.
        abilities: The scored abilities.
        surfaces: The surface of each ability.
        effects: P value of no effect of the composition on each ability, corrected for their number (Holm).
        score_DAC: Draws of each ability's mean score at each candidate.
        utility_DC: Draws of the weighted mean.
        feasible_DC: Whether a draw keeps all constraints.
        anchor_DN: Draws of the anchors' weighted mean, in the order of ``anchors``.
        anchors: Names of the anchors.
        anchor_feasible_DN: Whether a draw of an anchor keeps all constraints.
        floors: The score that each constraint requires of its ability, on average over the draws.
        noise: Standard deviation of the weighted mean of one run.
    """

    candidates: list[Point]
    abilities: list[str]
    surfaces: dict[str, Surface]
    effects: dict[str, float]
    score_DAC: np.ndarray
    utility_DC: np.ndarray
    feasible_DC: np.ndarray
    anchors: list[str]
    anchor_DN: np.ndarray
    anchor_feasible_DN: np.ndarray
    floors: dict[Constraint, float]
    noise: float

    @property
    def has_effect(self) -> bool:
        """Whether the composition was found to change any score."""
        return any(p < LEVEL for p in self.effects.values())

    def chance(self) -> np.ndarray:
        """Compute the share of draws in which each candidate keeps the constraints [C]."""
        return self.feasible_DC.mean(0)

    def best(self) -> int:
        """Return the candidate with the highest mean that likely keeps the constraints, else the likeliest one."""
        chance_C, mean_C = self.chance(), self.utility_DC.mean(0)
        if (chance_C >= LIKELY).any():
            return int(np.where(chance_C >= LIKELY, mean_C, -np.inf).argmax())
        return int((chance_C + 1e-6 * mean_C).argmax())

    def inside_noise(self) -> np.ndarray:
        """Return which candidates are not shown to be worse than the best [C]."""
        behind_DC = self.utility_DC - self.utility_DC[:, [self.best()]]
        high_C = middle(behind_DC)[1]
        return (high_C >= 0) & self.likely()

    def likely(self) -> np.ndarray:
        """Return which candidates likely keep the constraints; if none does, those as likely to as the best [C]."""
        chance_C = self.chance()
        return np.asarray(chance_C >= min(LIKELY, chance_C[self.best()]))

    def best_anchor(self) -> str:
        """Return the anchor with the highest mean among those that likely keep the constraints, else among all."""
        mean_N, likely_N = self.anchor_DN.mean(0), self.likely_anchors()
        return self.anchors[int(np.where(likely_N | ~likely_N.any(), mean_N, -np.inf).argmax())]

    def likely_anchors(self) -> np.ndarray:
        """Return which anchors likely keep the constraints [N]."""
        return np.asarray(self.anchor_feasible_DN.mean(0) >= LIKELY)

    def improvements(self, taken: set[Point], num_points: int) -> tuple[list[int], float]:
        """Return the candidates to run next, by expected improvement on the best, and the first one's improvement.

        Constrained expected improvement of several points together (Schonlau 1997; Gardner et al. 2014), estimated from
        the draws: each next point is the one that adds most to those before it.
        """
        gain_DC = np.maximum(self.utility_DC - self.utility_DC[:, [self.best()]], 0) * self.feasible_DC
        open_C = np.array([point not in taken for point in self.candidates])
        reached_D, chosen, first = np.zeros(len(gain_DC)), list[int](), 0.0
        for _ in range(min(num_points, int(open_C.sum()))):
            expected_C = np.where(open_C, np.maximum(gain_DC, reached_D[:, None]).mean(0), -np.inf)
            number = int(expected_C.argmax())
            first = first or float(expected_C[number])
            chosen.append(number)
            open_C[number] = False
            reached_D = np.maximum(reached_D, gain_DC[:, number])
        return chosen, first


def believe(
    space: Space,
    candidates: Sequence[Point],
    trials: Sequence[Trial],
    observations: Sequence[Observation],
    weights: Mapping[str, float],
    constraints: Sequence[Constraint],
) -> Beliefs:
    """Fit the surfaces and draw from them; draws are clipped to 0 and the best possible score."""
    abilities = list(observations[0].values)
    points = {trial.name: trial.point for trial in trials}
    inside = [(points[o.trial], o) for o in observations if points[o.trial] is not None]
    anchors = list({trial.anchor.name: trial for trial in trials if trial.anchor}.values())
    surfaces, p_values, draws, anchor_draws = dict[str, Surface](), list[float](), [], []
    for number, ability in enumerate(abilities):
        places, values = [p for p, _ in inside if p is not None], [o.values[ability] for _, o in inside]
        surfaces[ability] = fit_surface(space, places, values)
        p_values.append(effect_p(space, places, values))
        drawn_DC, anchor_DN = _ability_draws(ability, surfaces[ability], candidates, anchors, observations, number)
        draws.append(drawn_DC)
        anchor_draws.append(anchor_DN)
    score_DAC, anchor_DAN = (np.clip(np.stack(some, 1), 0, 1) for some in (draws, anchor_draws))
    weight_A = np.array([weights.get(ability, 0.0) for ability in abilities])
    weight_A = weight_A / weight_A.sum()
    names = [trial.anchor.name for trial in anchors if trial.anchor]
    floors = {c: _floor(c, abilities, names, anchor_DAN) for c in constraints}
    keeps, anchor_keeps = (_keeping(score, abilities, floors) for score in (score_DAC, anchor_DAN))
    noise_A = np.array([surfaces[ability].noise for ability in abilities])
    return Beliefs(
        candidates=list(candidates),
        abilities=abilities,
        surfaces=surfaces,
        effects=dict(zip(abilities, holm(p_values), strict=True)),
        score_DAC=score_DAC,
        utility_DC=np.einsum("dac,a->dc", score_DAC, weight_A),
        feasible_DC=keeps,
        anchors=names,
        anchor_DN=np.einsum("dan,a->dn", anchor_DAN, weight_A),
        anchor_feasible_DN=anchor_keeps,
        floors={constraint: float(floor_D.mean()) for constraint, floor_D in floors.items()},
        noise=float(np.sqrt(((weight_A * noise_A) ** 2).sum())),
    )


def _ability_draws(
    ability: str,
    surface: Surface,
    candidates: Sequence[Point],
    anchors: Sequence[Trial],
    observations: Sequence[Observation],
    number: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an ability's mean score at the candidates [D, C] and at the anchors [D, N]; ``number`` is the seed.

    Anchors outside the space have no place on the surface: they are drawn around the mean of their runs.
    """
    inside = [trial.point for trial in anchors if trial.point is not None]
    drawn_DP = _draws(surface, [*candidates, *inside], seed=number)
    on_surface, random = iter(drawn_DP[:, len(candidates) :].T), np.random.default_rng(1000 + number)
    anchor_ND = []
    for trial in anchors:
        if trial.point is not None:
            anchor_ND.append(next(on_surface))
            continue
        error = surface.noise / sum(o.trial == trial.name for o in observations) ** 0.5
        anchor_ND.append(mean_of(observations, trial.name, ability) + error * random.normal(size=NUM_DRAWS))
    return drawn_DP[:, : len(candidates)], np.array(anchor_ND).T


def _draws(surface: Surface, points: Sequence[Point], seed: int) -> np.ndarray:
    """Draw from the surface, jointly over points [D, P]."""
    different = list(dict.fromkeys(points))
    mean_P, cov_PP = surface.predict(different)
    value_P, vector_PP = np.linalg.eigh((cov_PP + cov_PP.T) / 2)
    root_PP = vector_PP * np.sqrt(np.maximum(value_P, 0))
    drawn_DP = mean_P + np.random.default_rng(seed).normal(size=(NUM_DRAWS, len(different))) @ root_PP.T
    place = {point: i for i, point in enumerate(different)}
    return drawn_DP[:, [place[point] for point in points]]


def _floor(
    constraint: Constraint, abilities: Sequence[str], names: Sequence[str], anchor_DAN: np.ndarray
) -> np.ndarray:
    """Return the score that the ability must reach in each draw [D]."""
    if not constraint.anchor:
        return np.full(NUM_DRAWS, constraint.number)
    anchor_D = anchor_DAN[:, list(abilities).index(constraint.ability), list(names).index(constraint.anchor)]
    return anchor_D - constraint.number


def _keeping(score_DAC: np.ndarray, abilities: Sequence[str], floors: Mapping[Constraint, np.ndarray]) -> np.ndarray:
    kept = np.ones((score_DAC.shape[0], score_DAC.shape[2]), dtype=bool)
    for constraint, floor_D in floors.items():
        kept &= score_DAC[:, list(abilities).index(constraint.ability)] >= floor_D[:, None] - 1e-12
    return kept
