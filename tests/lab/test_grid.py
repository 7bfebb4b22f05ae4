"""The grid of the lab's mixtures: what is run, and that searches over it are given what was measured and no more."""

import numpy as np
import pytest
from test_phenomena import tool

ABILITIES = ("math", "code", "general")


@pytest.fixture(autouse=True)
def tools_beside(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "tools"))


def test_the_grid_is_every_composition_once_and_what_others_need_comes_first():
    grid = tool("lab_grid")
    cells = [job.cell for job in grid.jobs("grid")]
    assert len(set(cells)) == len(cells) == 105 and {sum(cell) for cell in cells} == {13}
    assert set(cells[:4]) == {*grid.CORNERS, grid.PROPORTIONAL}
    assert [job.cell for job in grid.jobs("again")] == cells
    assert set(grid.REPLICATED) <= set(cells)


@pytest.mark.parametrize("steps", [72, 200])
def test_every_strategy_has_the_same_number_of_steps(steps):
    for name, make in tool("lab_grid").strategies(dict.fromkeys(ABILITIES, 1.0), steps).items():
        schedule, _ = make()
        assert sum(stage.steps for stage in schedule.final_stages(list(ABILITIES))) == steps, name


def measured():
    """A grid of thirds with two seeds each, whose scores tell cell and seed."""
    cells = [(m, c, 3 - m - c) for m in range(4) for c in range(4 - m)]
    return {cell: {seed: np.array(cell) / 10 + seed / 100 for seed in (1, 2)} for cell in cells}


def test_a_search_is_given_the_runs_of_its_compositions():
    found = tool("lab_grid_search.py")
    spec = found.spec_of(3, dict.fromkeys(ABILITIES, 100), 21)
    site = found.Measured(measured(), 3, seed=0)
    point = next(p for p in spec.space.candidates() if site.cell(p) == (2, 0, 1))
    trial = found.Trial("a", point, (1, 2), "design")
    seen = {tuple(o.values.values()) for o in site.observations([trial])}
    assert seen == {tuple(run.tolist()) for run in measured()[2, 0, 1].values()}


def test_shuffled_runs_are_the_same_runs_elsewhere():
    found, before = tool("lab_grid_search.py"), measured()
    after = found.shuffled(before, seed=1)
    values = [sorted(tuple(run) for runs in cells.values() for run in runs.values()) for cells in (before, after)]
    assert values[0] == values[1]
    assert any(not np.array_equal(before[cell][1], after[cell][1]) for cell in before)


def test_noise_is_that_between_seeds():
    assert tool("lab_grid_search.py").noise_of(measured()) == pytest.approx([0.01 / 2**0.5] * 3)
