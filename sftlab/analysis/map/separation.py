"""How far abilities lie apart in a layer's hidden states: measures that do not depend on any drawing.

silhouette          (b - a) / max(a, b) of a query: a is its mean distance to queries of its own ability, b to those of
                    the nearest other one (Rousseeuw 1987); 1 apart, 0 mixed, below 0 in the other's place
probe accuracy      of a linear classifier on queries that it was not fitted to (Alain & Bengio 2016, arXiv 1610.01644)
CKA of checkpoints  linear centred kernel alignment of the same queries in two models (Kornblith et al. 2019, arXiv
                    1905.00414); 1 when one is a rotation and scaling of the other
alignment           the same formula for two abilities. Their queries do not pair, so the hidden units do: it is the
                    cosine of the two covariance matrices, 1 when both vary along the same directions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np

from sftlab.plan.pool import seed_from
from sftlab.stats.interval import wilson

if TYPE_CHECKING:
    from sftlab.analysis.map.representation import HiddenStates

_FOLDS = 5
_SHUFFLES = 20  # random pairings that are averaged for the chance level of a CKA


@dataclass
class Separation:
    """Measures of one layer of one checkpoint.

    Attributes:
        checkpoint: Its label.
        layer: Number of the layer; 0 are the embeddings.
        depth: The layer as a part of all blocks.
        num_queries: Queries over all abilities.
        silhouette: Mean over all queries.
        silhouette_by_ability: Mean over the queries of each ability.
        probe_accuracy: Part of the queries whose ability the probe names.
        probe_interval: Its 95 % interval (Wilson).
        probe_chance: Accuracy of always naming the largest ability.
        probe_by_ability: The same for the queries of each ability.
        alignment: By pair ``a-b``, of disjoint halves of their queries; ``a-a`` is the most that noise allows.
        cka: By the other checkpoint's label: layer there, value, chance (mean over random pairings).
    """

    checkpoint: str
    layer: int
    depth: float
    num_queries: int
    silhouette: float
    silhouette_by_ability: dict[str, float]
    probe_accuracy: float
    probe_interval: tuple[float, float]
    probe_chance: float
    probe_by_ability: dict[str, float]
    alignment: dict[str, float | None]
    cka: dict[str, dict[str, Any]] = field(default_factory=dict)


def measure(
    states_ND: np.ndarray, abilities_N: Sequence[str], checkpoint: str, layer: int, num_blocks: int, seed: int = 0
) -> Separation:
    """Compute all measures of one layer except the CKA with other checkpoints.

    Args:
        states_ND: Hidden states.
        abilities_N: Name of the ability of each.
        checkpoint: Label of the checkpoint.
        layer: Number of the layer.
        num_blocks: Layers without the embeddings.
        seed: Deals queries to the folds of the probe.
    """
    states_ND, names_N = np.asarray(states_ND, dtype=np.float64), np.asarray(abilities_N)
    names = list(dict.fromkeys(abilities_N))
    silhouette_N = silhouettes(states_ND, names_N)
    right_N = probe_predictions(states_ND, names_N, seed) == names_N
    accuracy = float(right_N.mean())
    return Separation(
        checkpoint=checkpoint,
        layer=layer,
        depth=layer / num_blocks,
        num_queries=len(names_N),
        silhouette=float(silhouette_N.mean()),
        silhouette_by_ability={name: float(silhouette_N[names_N == name].mean()) for name in names},
        probe_accuracy=accuracy,
        probe_interval=wilson(accuracy, len(names_N)),
        probe_chance=max(float((names_N == name).mean()) for name in names),
        probe_by_ability={name: float(right_N[names_N == name].mean()) for name in names},
        alignment={
            f"{a}-{b}": _finite(half_alignment(states_ND[names_N == a], states_ND[names_N == b], same=a == b))
            for a, b in combinations_with_replacement(names, 2)
        },
    )


def measure_all(
    states: Mapping[str, HiddenStates],
    abilities_N: Sequence[str],
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Separation]]:
    """Measure every layer of every checkpoint; CKA is with the first checkpoint's layer at the same depth.

    One layer of two checkpoints is in memory at a time.
    """
    (first, of_first), *_ = states.items()
    measured: dict[str, list[Separation]] = {label: [] for label in states}
    done, total = 0, sum(of_one.num_blocks + 1 for of_one in states.values())
    for label, of_one in states.items():
        for layer in range(of_one.num_blocks + 1):
            states_ND = of_one.layer(layer)
            figures = measure(states_ND, abilities_N, label, layer, of_one.num_blocks, seed)
            if label != first:
                there = math.floor(figures.depth * of_first.num_blocks + 0.5)
                value, chance = cka_with_chance(states_ND, of_first.layer(there), seed)
                figures.cka[first] = {"layer": there, "cka": value, "chance": chance}
            measured[label].append(figures)
            done += 1
            tell(done, total)
    return measured


def is_constant(states_ND: np.ndarray) -> bool:
    """Return whether all rows are equal up to rounding."""
    return float(np.ptp(states_ND, axis=0).max()) <= 1e-6 * float(np.abs(states_ND).max())


def silhouettes(states_ND: np.ndarray, names_N: np.ndarray) -> np.ndarray:
    """Compute the silhouette of each query by Euclidean distance; 0 if all states are equal."""
    from sklearn.metrics import silhouette_samples

    if is_constant(states_ND):
        return np.zeros(len(names_N))
    values_N: np.ndarray = silhouette_samples(states_ND, names_N)
    return values_N


def probe_predictions(states_ND: np.ndarray, names_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """Predict each query's ability by a logistic regression on standardised states, fitted on the other folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed_from("probe", seed) % 2**32)
    predicted_N: np.ndarray = cross_val_predict(probe, states_ND, names_N, cv=folds)
    return predicted_N


def linear_cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float:
    """Compute linear CKA of two representations of the same queries; nan if one is constant."""
    return _cosine(_gram(x_ND), _gram(y_NE))


def cka_with_chance(x_ND: np.ndarray, y_NE: np.ndarray, seed: int = 0) -> tuple[float | None, float | None]:
    """Compute linear CKA, and its mean over random pairings: with few queries and many units it is far above 0."""
    x_NN, y_NN = _gram(x_ND), _gram(y_NE)
    generator = np.random.default_rng(seed_from("cka", seed))
    orders = [generator.permutation(len(y_NN)) for _ in range(_SHUFFLES)]
    chance = np.mean([_cosine(x_NN, y_NN[np.ix_(order, order)]) for order in orders])
    return _finite(_cosine(x_NN, y_NN)), _finite(float(chance))


def half_alignment(a_MD: np.ndarray, b_KD: np.ndarray, same: bool) -> float:
    """Compute the alignment of two abilities' covariances from disjoint halves of their queries.

    Halves make the value of an ability with itself (``same``) comparable: it is what sampling alone leaves of 1.
    """
    pairs = [(a_MD[0::2], b_KD[1::2])] if same else [(a_MD[0::2], b_KD[1::2]), (a_MD[1::2], b_KD[0::2])]
    return float(np.mean([covariance_alignment(a, b) for a, b in pairs]))


def covariance_alignment(a_MD: np.ndarray, b_KD: np.ndarray) -> float:
    """Compute the cosine between the covariance matrices of two sets of states; nan if one is constant."""
    if is_constant(a_MD) or is_constant(b_KD):
        return math.nan
    a_MD, b_KD = _centred(a_MD), _centred(b_KD)
    norm = np.linalg.norm(a_MD @ a_MD.T) * np.linalg.norm(b_KD @ b_KD.T)
    return float(np.square(a_MD @ b_KD.T).sum() / norm)


def _centred(x_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(x_ND, dtype=np.float64)
    return x_ND - x_ND.mean(0)


def _gram(x_ND: np.ndarray) -> np.ndarray:
    centred_ND = _centred(x_ND) * (not is_constant(x_ND))
    return centred_ND @ centred_ND.T


def _cosine(x_NN: np.ndarray, y_NN: np.ndarray) -> float:
    norm = np.linalg.norm(x_NN) * np.linalg.norm(y_NN)
    return float((x_NN * y_NN).sum() / norm) if norm else math.nan


def _finite(value: float) -> float | None:
    """Return None for nan, which JSON does not have."""
    return value if math.isfinite(value) else None
