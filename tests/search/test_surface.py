"""Surfaces: their intervals cover what they claim to, and what has no effect is not given one."""

import numpy as np
import pytest
from surfaces import spec_of

from sftlab.search.design import d_optimal
from sftlab.search.effect import effect_p
from sftlab.search.surface import fit_surface

NOISE = 0.02


def random_truth(kind, seed):
    """A surface over three shares and a number from 0 to 1, of a form of its own or of none of ours."""
    random = np.random.default_rng(seed)
    if kind == "law":
        slope, size = 2 * random.normal(size=4), random.choice([-0.3, 0.3])
        return lambda share, k: 0.5 + size * np.exp(share @ slope[:3] + slope[3] * k - 2)
    if kind == "waves":  # smooth, and of none of our forms
        slope_JF, shift_J = 1.5 * random.normal(size=(8, 4)), random.uniform(0, 6, 8)
        size_J = 0.05 * random.normal(size=8)
        return lambda share, k: 0.5 + np.cos(np.hstack([np.sqrt(share), k[:, None]]) @ slope_JF.T + shift_J) @ size_J
    if kind == "saturating":
        half, own, fall = random.uniform(0.02, 0.2), random.integers(3), random.uniform(0, 0.4)
        return lambda share, k: (
            0.8 * share[:, own] / (share[:, own] + half) - fall * share[:, (own + 1) % 3] ** 2 + 0.1 * k
        )
    return lambda share, k: 0.5 + 0 * k


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The space, its candidates, and a design of 20 runs."""
    space = spec_of(tmp_path_factory.mktemp("surface")).space
    grid = space.candidates()
    anchors = [anchor.point for anchor in space.anchors()]
    return space, grid, [*anchors, *anchors[:1] * 2, *d_optimal(space, anchors, grid, 13)]


def test_intervals_cover_the_truth_and_are_no_wider_than_they_must_be(runs):
    """A few draws; tools/search_calibration makes many, and docs/search.md has what came out."""
    space, grid, design = runs
    columns = space.columns(grid)
    covered, widths, errors = [], [], []
    for seed, kind in enumerate(("law", "waves", "saturating", "flat")):
        truth_C = random_truth(kind, seed)(columns.share_PS, columns.number_PN[:, 0])
        noise = NOISE * np.random.default_rng(100 + seed).normal(size=len(design))
        surface = fit_surface(space, design, [truth_C[grid.index(point)] for point in design] + noise)
        mean_C, cov_CC = surface.predict(grid)
        error_C, sd_C = np.abs(mean_C - truth_C), np.sqrt(np.diag(cov_CC))
        covered.append(error_C <= 1.96 * sd_C)
        widths.append(sd_C**2)
        errors.append(error_C**2)
        assert NOISE / 2 < surface.noise < 2.5 * NOISE
    assert np.mean(covered) >= 0.90
    assert np.sqrt(np.mean(widths)) < 3 * np.sqrt(np.mean(errors)) < 6 * NOISE


def test_the_form_is_chosen_by_what_was_left_out(runs):
    space, _, design = runs
    columns, chosen = space.columns(design), []
    for seed in range(6):  # laws that scores could follow, nearly without noise
        random = np.random.default_rng(seed)
        slope, size = random.normal(size=4), (-0.3, 0.3)[seed % 2]
        values = 0.5 + size * np.exp(columns.share_PS @ slope[:3] + slope[3] * columns.number_PN[:, 0] - 1)
        surface = fit_surface(space, design, values + 0.001 * random.normal(size=len(design)))
        forms = {form: error for form, error in surface.held_out.items() if form != "mean"}
        assert surface.form == min(forms, key=forms.get)
        assert surface.held_out["mean"] > 3 * forms[surface.form]
        chosen.append(surface.form)
    assert chosen.count("mixing law") >= 4


def test_no_effect_is_found_as_often_as_told_where_there_is_none(runs):
    space, _, design = runs
    random = np.random.default_rng(0)
    p_values = np.array([effect_p(space, design, random.normal(size=len(design))) for _ in range(60)])
    assert (p_values < 0.05).mean() <= 0.12  # 3 of 60 are expected, 7 or more in one of 25 trials
    assert 0.3 < p_values.mean() < 0.7


def test_an_effect_is_found_where_there_is_one(runs):
    space, _, design = runs
    columns = space.columns(design)
    values = random_truth("saturating", 1)(columns.share_PS, columns.number_PN[:, 0])
    assert effect_p(space, design, values + NOISE * np.random.default_rng(1).normal(size=len(design))) < 0.01


@pytest.mark.parametrize("hit", [0, 7])
def test_one_right_answer_among_runs_that_know_nothing_is_no_promise_of_half_of_them(runs, hit):
    space, grid, design = runs
    values = np.zeros(len(design))
    values[hit] = 0.05
    surface = fit_surface(space, design, values)
    mean_C, cov_CC = surface.predict(grid)
    assert surface.widened < 10
    assert np.abs(mean_C).max() < 0.1 and np.sqrt(np.diag(cov_CC)).max() < 0.2
