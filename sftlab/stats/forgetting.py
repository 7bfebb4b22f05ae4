"""What each stage taught and what it made forget, from the matrix R[stage, ability] of scores after each stage.

    R                math   code   general     full
    before training  0.05   0.10   0.02        -              the base; this row may be left out
    specialised      0.90   0.80   0.10        math, code     trains all of math and code
    general          0.60   0.75   0.70        general        trains all of general, replays a little math and code

    anchor           first  first  second      last stage that trained the ability in full; replay does not count
    BWT             -0.30  -0.05     -         R[T, j] - R[anchor, j]
    forgetting       0.30   0.05     -         max over earlier rows of R[l, j], minus R[T, j]
    FWT                -      -    0.08        R[before the first stage that trained j in full, j] - R[base, j]
    gain             0.55   0.65   0.68        R[T, j] - R[base, j]

T is the last stage. An ability anchored at T has nothing to forget yet: its BWT and forgetting are ``None``; so is its
FWT if no stage came before the ability's first. A score that was not measured is nan, and so is every number that needs
it, means included.

Differences are in the ability's own unit. Means over abilities are taken after division by each ability's ``best``
score (1 for rates, 10 for MT-Bench), or relative to a specialist; raw scores of different scales are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PerAbility = dict[str, float | None]
BEFORE = "before training"
"""Name of the first row if it holds the scores of the model before any training."""


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores of every ability after every stage.

    Attributes:
        stages: Names, in the order of training. A first row named ``BEFORE`` is the base; it trains nothing.
        abilities: Names. An ability that no stage trains is allowed: it can be forgotten too.
        full: For each stage the abilities that it trained in full (``Stage.full_abilities``).
        scores_SA: R [stages, abilities]; nan where not measured.
        best: The highest score that each ability can have; 1 by default.

    Raises:
        ValueError: The parts do not fit each other, or a score lies above its best.
    """

    stages: tuple[str, ...]
    abilities: tuple[str, ...]
    full: tuple[tuple[str, ...], ...]
    scores_SA: np.ndarray
    best: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        shape = (len(self.stages), len(self.abilities))
        if self.scores_SA.shape != shape or len(self.full) != len(self.stages) or 0 in shape:
            raise ValueError(
                f"{len(self.stages)} stages ({len(self.full)} with what they train) and {len(self.abilities)} "
                f"abilities do not fit scores of shape {self.scores_SA.shape}"
            )
        for j, ability in enumerate(self.abilities):
            highest = np.nanmax(self.scores_SA[:, j], initial=-math.inf)
            if highest > self.best_of(ability):
                raise ValueError(
                    f"{ability}: a score of {highest:g} is above the best possible, {self.best_of(ability):g}; "
                    "give its scale in best (10 for MT-Bench)"
                )

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, object]],
        full: Mapping[str, Sequence[str]],
        best: Mapping[str, float] | None = None,
    ) -> ScoreMatrix:
        """Build the matrix from rows with ``stage``, ``ability`` and ``value``; stages in the order of ``full``.

        Raises:
            ValueError: A pair occurs twice, or a stage is unknown.
        """
        stages, abilities = tuple(full), tuple(dict.fromkeys(str(row["ability"]) for row in rows))
        scores_SA = np.full((len(stages), len(abilities)), math.nan)
        for row in rows:
            stage, ability = str(row["stage"]), str(row["ability"])
            if stage not in full:
                raise ValueError(f"a score of {ability} after stage {stage!r}; the stages are {', '.join(stages)}")
            cell = stages.index(stage), abilities.index(ability)
            if not math.isnan(scores_SA[cell]):
                raise ValueError(f"two scores of {ability} after stage {stage!r}; give the headline score alone")
            scores_SA[cell] = float(str(row["value"]))
        return cls(stages, abilities, tuple(tuple(full[stage]) for stage in stages), scores_SA, best)

    def best_of(self, ability: str) -> float:
        """The highest score that an ability can have."""
        return (self.best or {}).get(ability, 1.0)

    def final(self, ability: str) -> float:
        """R[T, j]: the score after the last stage."""
        return float(self.scores_SA[-1, self.abilities.index(ability)])

    def anchor(self, ability: str) -> int | None:
        """Return the index of the last stage that trained an ability in full; None if no stage did."""
        return max((i for i, names in enumerate(self.full) if ability in names), default=None)

    @property
    def has_base(self) -> bool:
        """Whether the model was scored before training."""
        return self.stages[0] == BEFORE

    def is_exposed(self, ability: str) -> bool:
        """Return whether a stage came after the ability's anchor, so that it could be forgotten."""
        anchor = self.anchor(ability)
        return len(self.stages) > 1 and (anchor is None or anchor < len(self.stages) - 1)


def backward_transfer(matrix: ScoreMatrix) -> PerAbility:
    """R[T, j] - R[anchor, j]: the effect of the later stages on an ability; negative if it was forgotten.

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840, section 2) with task j's own stage as the anchor. None for abilities
    anchored at the last stage or nowhere.
    """
    result: PerAbility = {}
    for j, ability in enumerate(matrix.abilities):
        anchor = matrix.anchor(ability)
        exposed = anchor is not None and matrix.is_exposed(ability)
        result[ability] = float(matrix.scores_SA[-1, j] - matrix.scores_SA[anchor, j]) if exposed else None
    return result


def forgetting(matrix: ScoreMatrix) -> PerAbility:
    """Largest R[l, j] over l < T, minus R[T, j]: the loss against the best score that the model ever had.

    Chaudhry et al. 2018 (arXiv 1801.10112, section 3). Negative if the last stage made the ability better than ever.
    None for abilities anchored at the last stage. An ability that no stage trained counts: it can be forgotten too.
    """
    result: PerAbility = {}
    for j, ability in enumerate(matrix.abilities):
        # np.max, not np.nanmax: if a stage is not measured, the best is unknown.
        exposed = matrix.is_exposed(ability)
        result[ability] = float(np.max(matrix.scores_SA[:-1, j]) - matrix.scores_SA[-1, j]) if exposed else None
    return result


def forward_transfer(matrix: ScoreMatrix) -> PerAbility:
    """R[first - 1, j] - R[base, j]: the effect on an ability of the stages before its own, against the base model.

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840, section 2), with the pretrained model instead of a random one and
    the first stage that trained ability j in full as its own. Where an earlier stage trained a fraction of it, that
    counts too. None without a base row, and for abilities of the first stage or of none.
    """
    result: PerAbility = {}
    for j, ability in enumerate(matrix.abilities):
        first = next((i for i, names in enumerate(matrix.full) if ability in names), 0)
        moved = matrix.has_base and first > 1
        result[ability] = float(matrix.scores_SA[first - 1, j] - matrix.scores_SA[0, j]) if moved else None
    return result


def gain(matrix: ScoreMatrix) -> PerAbility:
    """R[T, j] - R[base, j]: the effect of the whole training on an ability. None without a base row."""
    changes = matrix.scores_SA[-1] - matrix.scores_SA[0]
    return {name: float(changes[j]) if matrix.has_base else None for j, name in enumerate(matrix.abilities)}


def specialist_gap(matrix: ScoreMatrix, specialists: Mapping[str, float]) -> PerAbility:
    """R[T, j] - S[j], S[j] being the score of a model trained on that ability's data alone.

    The comparison that arXiv 2310.05492, Table 1, invites (strategy against single-source rows). None without S[j].
    """
    return {name: matrix.final(name) - specialists[name] if name in specialists else None for name in matrix.abilities}


def retention(matrix: ScoreMatrix, specialists: Mapping[str, float]) -> PerAbility:
    """R[T, j] / S[j]: the share of the single-source specialist's score that the final model has; 1 is all of it.

    None without S[j]; nan if the specialist scores 0.
    """
    result: PerAbility = {}
    for ability in matrix.abilities:
        reference = specialists.get(ability)
        result[ability] = None if reference is None else matrix.final(ability) / reference if reference else math.nan
    return result


def average(matrix: ScoreMatrix) -> float:
    """mean_j R[T, j] / best[j]: the average accuracy of Lopez-Paz and Ranzato 2017, on a common scale from 0 to 1."""
    return _mean([matrix.final(ability) / matrix.best_of(ability) for ability in matrix.abilities])


def mean_over_abilities(matrix: ScoreMatrix, values: PerAbility) -> float:
    """Mean of differences over the abilities that have one, each divided by its ability's best; nan if none has."""
    return _mean([value / matrix.best_of(name) for name, value in values.items() if value is not None])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def table_rows(matrix: ScoreMatrix, specialists: Mapping[str, float] | None = None) -> list[list[str]]:
    """Return rows for a printed table: a header, a row per stage, then the metrics; the last column is the mean.

    Scores of a best of 1 are in percent (differences in percentage points), others as they are; means always in
    percent of the best. A star marks the stage that an ability is anchored at.
    """
    rows = [["after stage", *matrix.abilities, "mean"]]
    for i, stage in enumerate(matrix.stages):
        scores = {name: float(score) for name, score in zip(matrix.abilities, matrix.scores_SA[i], strict=True)}
        cells = [_cell(matrix, name, score) + "*" * (matrix.anchor(name) == i) for name, score in scores.items()]
        rows.append([stage, *cells, _percent(mean_over_abilities(matrix, dict(scores)))])
    changes = {"backward transfer": backward_transfer(matrix), "forgetting": forgetting(matrix)}
    if matrix.has_base:
        changes |= {"forward transfer": forward_transfer(matrix), "gain over the base": gain(matrix)}
    if specialists:
        changes["against the specialist"] = specialist_gap(matrix, specialists)
    for title, values in changes.items():
        cells = [_cell(matrix, name, value, signed=True) for name, value in values.items()]
        rows.append([title, *cells, _percent(mean_over_abilities(matrix, values), signed=True)])
    if specialists:
        kept = retention(matrix, specialists)
        mean = _mean([value for value in kept.values() if value is not None])
        rows.append(["retention", *map(_percent, kept.values()), _percent(mean)])
    return rows


def _cell(matrix: ScoreMatrix, ability: str, value: float | None, signed: bool = False) -> str:
    if value is None or math.isnan(value):
        return "-" if value is None else "not measured"
    return _percent(value, signed) if matrix.best_of(ability) == 1 else f"{value:{'+' if signed else ''}.2f}"


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:+.1f} pts" if signed else f"{value:.1%}"
