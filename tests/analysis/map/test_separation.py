"""Figures of separation against direct formulas, and what must not change them."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from sftlab.analysis.map.projection import methods, project
from sftlab.analysis.map.separation import (
    cka_with_chance,
    covariance_alignment,
    half_alignment,
    linear_cka,
    measure,
    measure_all,
    probe_predictions,
    silhouettes,
)

NAMES_N = np.repeat(["math", "code", "general"], 30)


def clusters(distance: float, seed: int = 0, size: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, size)) * distance
    return np.repeat(centres, 30, axis=0) + rng.normal(size=(90, size))


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_clusters_are_apart_and_shuffled_labels_are_not():
    states_ND = clusters(5.0)
    apart = measure(states_ND, NAMES_N.tolist(), "x", 1, 2)
    assert apart.probe_accuracy > 0.99 and apart.silhouette > 0.6
    assert min(apart.silhouette_by_ability.values()) > 0.5 and min(apart.probe_by_ability.values()) > 0.99
    accuracies = []
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(NAMES_N)
        mixed = measure(states_ND, shuffled.tolist(), "x", 1, 2)
        assert mixed.silhouette < 0.02 and mixed.probe_chance == pytest.approx(1 / 3)
        accuracies.append(mixed.probe_accuracy)
    assert np.mean(accuracies) == pytest.approx(1 / 3, abs=0.08)


def test_the_probe_never_sees_what_it_is_asked():
    """With more dimensions than queries any labels can be fitted; held-out accuracy must stay at chance."""
    rng = np.random.default_rng(0)
    right = [(probe_predictions(rng.normal(size=(90, 200)), NAMES_N, seed) == NAMES_N).mean() for seed in range(4)]
    assert np.mean(right) == pytest.approx(1 / 3, abs=0.1)


def test_silhouettes_are_those_of_the_definition():
    states_ND = clusters(0.7)
    distance_NN = np.linalg.norm(states_ND[:, None] - states_ND[None], axis=-1)
    expected = []
    for i, name in enumerate(NAMES_N):
        own = distance_NN[i, name == NAMES_N].sum() / 29
        other = min(distance_NN[i, n == NAMES_N].mean() for n in set(NAMES_N) - {name})
        expected.append((other - own) / max(own, other))
    np.testing.assert_allclose(silhouettes(states_ND, NAMES_N), expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.floats(0.01, 100))
def test_cka_is_the_formula_over_features_and_ignores_rotation_and_scale(n, d, e, seed, scale):
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(n, d)) + 3
    y_NE = x_ND[:, :1] @ rng.normal(size=(1, e)) + rng.normal(size=(n, e))
    xc, yc = x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)
    direct = np.linalg.norm(yc.T @ xc) ** 2 / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    assert linear_cka(x_ND, y_NE) == pytest.approx(direct, rel=1e-8)
    assert linear_cka(y_NE, x_ND) == pytest.approx(direct, rel=1e-8)
    assert linear_cka(x_ND, x_ND) == pytest.approx(1)
    assert linear_cka(x_ND @ rotation(d, seed) * scale + 5, y_NE) == pytest.approx(direct, rel=1e-5)
    order = rng.permutation(n)
    assert linear_cka(x_ND[order], y_NE[order]) == pytest.approx(direct, rel=1e-8)


def test_chance_of_cka_shows_what_few_queries_do():
    rng = np.random.default_rng(0)
    wide = cka_with_chance(rng.normal(size=(20, 400)), rng.normal(size=(20, 400)))
    assert wide[0] > 0.8 and wide[0] == pytest.approx(wide[1], abs=0.05)  # unrelated, and it looks alike
    x_ND = rng.normal(size=(300, 10))
    value, chance = cka_with_chance(x_ND, x_ND @ rotation(10, 1))
    assert value == pytest.approx(1) and chance < 0.2


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 8), st.integers(0, 10_000))
def test_alignment_is_the_cosine_of_covariance_matrices(m, k, d, seed):
    rng = np.random.default_rng(seed)
    a_MD, b_KD = rng.normal(size=(m, d)), rng.normal(size=(k, d)) * rng.uniform(0.1, 3, size=d)
    a_DD, b_DD = np.cov(a_MD.T).reshape(d, d), np.cov(b_KD.T).reshape(d, d)
    direct = (a_DD * b_DD).sum() / (np.linalg.norm(a_DD) * np.linalg.norm(b_DD))
    assert covariance_alignment(a_MD, b_KD) == pytest.approx(direct, rel=1e-8)
    assert covariance_alignment(a_MD[rng.permutation(m)] * 7 + 1, b_KD) == pytest.approx(direct, rel=1e-6)


def test_alignment_knows_shared_from_separate_directions():
    rng = np.random.default_rng(0)
    a, b = np.zeros((2000, 10)), np.zeros((2000, 10))
    a[:, :5], b[:, 5:] = rng.normal(size=(2000, 5)), rng.normal(size=(2000, 5))
    assert half_alignment(a, b, same=False) == pytest.approx(0)
    assert half_alignment(a, a, same=True) > 0.98


def test_equal_states_are_chance_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = measure(np.full((90, 6), 0.1, dtype=np.float32), NAMES_N.tolist(), "x", 0, 2)
    assert same.probe_accuracy == pytest.approx(1 / 3) and same.silhouette == 0
    assert set(same.alignment.values()) == {None}
    assert cka_with_chance(np.full((90, 6), 0.1), clusters(1)) == (None, None)


class InMemory:
    """States that are not on disk."""

    def __init__(self, layers: list[np.ndarray]) -> None:
        self.layers, self.num_blocks = layers, len(layers) - 1

    def layer(self, number: int) -> np.ndarray:
        return self.layers[number]


def test_checkpoints_of_other_depth_are_compared_at_the_same_depth():
    deep = InMemory([clusters(1, seed) for seed in range(5)])
    shallow = InMemory([deep.layers[0], deep.layers[2] @ rotation(20, 3), deep.layers[4]])
    told = []
    measured = measure_all({"deep": deep, "shallow": shallow}, NAMES_N.tolist(), tell=lambda *now: told.append(now))
    assert [s.cka for s in measured["deep"]] == [{}] * 5
    found = [s.cka["deep"] for s in measured["shallow"]]
    assert [cka["layer"] for cka in found] == [0, 2, 4]
    assert [cka["cka"] for cka in found] == pytest.approx([1, 1, 1])
    assert told[-1] == (8, 8)


@pytest.mark.parametrize("method", methods())
def test_a_seed_fixes_the_picture(method):
    states_ND = clusters(2.0)
    first, again = project(states_ND, method, 1), project(states_ND, method, 1)
    np.testing.assert_array_equal(first.map_N2, again.map_N2)
    assert first.map_N2.shape == (90, 2) and first.note == again.note
    assert silhouettes(first.map_N2, NAMES_N).mean() > 0.5


def test_pca_is_the_singular_value_decomposition():
    states_ND = clusters(2.0)
    u, s, _ = np.linalg.svd(states_ND - states_ND.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(project(states_ND, "PCA").map_N2), np.abs(u[:, :2] * s[:2]), atol=1e-8)


@pytest.mark.parametrize("method", methods())
def test_equal_states_cannot_be_drawn(method):
    with pytest.raises(ValueError, match="--layer: there all queries have the same state"):
        project(np.full((30, 4), 0.3), method)
