"""What a log line says of the steps since the one before, and what the screen shows of it."""

import io

import pytest
from small import small_fit, small_mixture, trained

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.progress import Bar, ScreenProgress
from sftlab.callbacks.schedule import DMT
from sftlab.screen import screen

pytestmark = pytest.mark.usefixtures("records")
OPTIONS = {"accumulate_grad_batches": 2, "enable_checkpointing": True}


def lines_of(folder, records, *callbacks, **options):
    data = small_mixture(records)
    _, lines = small_fit(folder, DMT(k=0.25, epochs=1), data, *callbacks, **{**OPTIONS, **options})
    return trained(lines), data.plan


@pytest.fixture(scope="module")
def curves(module_records, tmp_path_factory):
    """A run that logs every step, and the same run that logs every third and saves every second."""
    folder = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "5")
        every_step, plan = lines_of(folder / "one", module_records)
        third, _ = lines_of(folder / "three", module_records, RunCheckpoint(2, keep_last=None), log_every=3)
    return folder, {line["step"]: line for line in every_step}, third, plan


def test_a_point_is_the_mean_over_the_supervised_tokens_since_the_point_before(curves):
    _, every_step, third, plan = curves
    ends = [stage.end_step for stage in plan.stages]
    assert [line["step"] for line in third] == sorted({*range(3, plan.num_steps, 3), *ends})
    before = 0
    for line in third:
        steps = range(before + 1, line["step"] + 1)
        for number, name in enumerate(plan.abilities):
            tokens = {step: int(plan.supervised_A(step - 1, step)[number]) for step in steps}
            total = sum(tokens.values())
            assert (f"train/loss/{name}" in line) == (total > 0)
            if total:
                mean = sum(every_step[s][f"train/loss/{name}"] * n for s, n in tokens.items() if n) / total
                assert line[f"train/loss/{name}"] == pytest.approx(mean, rel=1e-6)
        weights = {step: int(plan.supervised_A(step - 1, step).sum()) for step in steps}
        mean = sum(every_step[step]["train/loss"] * n for step, n in weights.items()) / sum(weights.values())
        assert line["train/loss"] == pytest.approx(mean, rel=1e-6)
        before = line["step"]


def test_a_run_that_goes_on_between_two_points_logs_the_same_points(curves, module_records):
    folder, _, third, plan = curves
    for checkpoint in sorted((folder / "three" / "checkpoints").glob("step=??????.ckpt")):
        step = int(checkpoint.stem.removeprefix("step="))
        resumed, _ = lines_of(folder / f"from{step}", module_records, ckpt_path=checkpoint, log_every=3)
        assert resumed == [line for line in third if line["step"] > step]
    assert step > plan.stages[0].end_step and step % 3, "both stages were gone on with, between points"


def test_the_screen_shows_no_losses_of_the_stage_before(records, tmp_path, capsys):
    bar = ScreenProgress(every_n_seconds=0.0)
    lines, plan = lines_of(tmp_path / "run", records, bar, enable_progress_bar=True, log_every=4)
    losses = {line["step"]: f"loss {line['train/loss']:.3f}" for line in lines}
    shown = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert {words[1] for words in shown} == {"specialised", "general"}
    for words in shown:
        step = int(words[0].removeprefix("step ").split("/")[0])
        stage = plan.stage_at(step - 1)
        known = [at for at in losses if stage.first_step < at < step]  # this bar looks before its step is logged
        assert words[1] == stage.stage.name
        assert [word for word in words if word.startswith("loss ")] == [losses[at] for at in known[-1:]]


def test_the_bar_shows_all_of_it_in_80_columns():
    file = io.StringIO()
    console = screen(file=file, width=80, force_terminal=True, color_system=None)
    bar = Bar(console)
    bar.add_task("stage specialised", total=5082, completed=1234)
    bar.numbers = "loss 0.755  code 0.381  math 1.172  general 2.123  11,847 tok/s"
    console.print(bar.get_renderable())
    shown = file.getvalue()
    assert all(text in shown for text in ("stage specialised", "1234/5082", "0:00:00", bar.numbers))
    assert "\u2026" not in shown and max(map(len, shown.splitlines())) <= 80
