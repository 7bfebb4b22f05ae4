"""A stage's end is done once and whole, wherever in it the run was killed and from whichever checkpoint it goes on."""

import errno
import json
import tempfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer
from safetensors.torch import load_file
from small import small_fit, small_mixture

import sftlab
from sftlab.callbacks import conductor, resume_guard
from sftlab.callbacks.schedule import MultiTask, Sequential
from sftlab.callbacks.scores import ScoreAbilities
from sftlab.model.contents import STATE, is_whole
from sftlab.model.parallel import register_strategies
from sftlab.run import identity
from sftlab.run.folder import complete_checkpoints
from sftlab.tasks.gsm8k import GSM8K

GOLD = [{"question": f"What is {i} plus {i}?", "answer": f"Add them.\n#### {2 * i}"} for i in range(3)]
ENDS = {"code": 2, "math": 4}


class Killed(BaseException):
    """What no one catches on the way."""


class DiesBefore(Callback):
    """Ends the process, as far as one can in a test, in the end of a stage before it is scored."""

    stage: str | None = None  # of the class: arguments of a callback belong to a run's identity

    def on_stage_end(self, trainer, pl_module, stage):
        if stage.stage.name == self.stage:
            raise Killed


class DiesAfter(DiesBefore):
    """The same once it is scored."""


class SaysIt(Callback):
    """One that would change what is trained."""

    changes_training = True


class DiesValidating(Callback):
    """The same before its validation."""

    stage: str | None = None

    def on_validation_start(self, trainer, pl_module):
        if ENDS.get(self.stage) == trainer.global_step:
            raise Killed


class Stops(Callback):
    """Asks a run to stop in the middle of its third step."""

    is_asking = False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= self.is_asking and batch_idx == 4


class Deletes(Callback):
    """Takes away every checkpoint that was written when a stage ends."""

    is_deleting = False

    def on_stage_end(self, trainer, pl_module, stage):
        for path in complete_checkpoints(Path(trainer.default_root_dir)) if self.is_deleting else ():
            path.unlink()


@pytest.fixture(scope="module")
def records(module_records):
    (module_records / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    return module_records


def fit(records, folder, last="math", **more):
    """Train two stages of two steps, each scored."""
    scores = ScoreAbilities(tasks={"math": GSM8K(str(records / "gold.jsonl"), max_new_tokens=4)})
    schedule = Sequential(order=["code", last], steps=2)
    callbacks = (DiesBefore(), scores, DiesAfter(), DiesValidating(), Stops(), Deletes())
    return small_fit(folder, schedule, small_mixture(records), *callbacks, **more)


def what_it_left(folder):
    """Losses, scores, exported weights and checkpoints."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    timed = ("perf/tokens_per_second", "perf/seconds_per_step", "perf/memory_gib", "stage/seconds")
    lines = sorted(json.dumps({k: v for k, v in line.items() if k not in timed}) for line in metrics)
    weights = {path.parent.name: load_file(path) for path in sorted(folder.glob("stages/*/model.safetensors"))}
    return lines, scores, weights, sorted(path.name for path in folder.glob("checkpoints/*"))


def assert_equal(mine, theirs):
    *texts, weights, names = mine
    *other_texts, other_weights, other_names = theirs
    assert texts == other_texts and names == other_names and weights.keys() == other_weights.keys()
    for stage, tensors in weights.items():
        assert all(torch.equal(tensor, other_weights[stage][name]) for name, tensor in tensors.items())


@pytest.fixture(scope="module")
def whole(records):
    fit(records, records / "whole")
    return what_it_left(records / "whole")


@pytest.mark.parametrize("stage", list(ENDS))
@pytest.mark.parametrize("place", ["before", "after", "validation", "name"])
def test_killed_in_the_end_of_a_stage_that_end_is_done_once_when_it_goes_on(records, whole, tmp_path, place, stage):
    with pytest.MonkeyPatch.context() as patch:
        if place == "name":
            named = conductor.checkpoint_path

            def dies_at_the_name(folder, step, name=""):
                if name == stage:
                    raise Killed
                return named(folder, step, name)

            patch.setattr(conductor, "checkpoint_path", dies_at_the_name)
        else:
            dies = {"before": DiesBefore, "after": DiesAfter, "validation": DiesValidating}
            patch.setattr(dies[place], "stage", stage)
        with pytest.raises(Killed):
            fit(records, tmp_path)
    newest = complete_checkpoints(tmp_path)[-1]
    assert newest.name == f"step={ENDS[stage]:06d}.ckpt"
    fit(records, tmp_path, ckpt_path=newest)
    assert_equal(what_it_left(tmp_path), whole)


def test_a_stage_that_is_finished_is_not_ended_again(records, whole, tmp_path):
    fit(records, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*")}
    fit(records, tmp_path, ckpt_path=complete_checkpoints(tmp_path)[-1])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*")} == written
    assert_equal(what_it_left(tmp_path), whole)


def test_asked_to_stop_in_the_middle_of_a_step_it_ends_the_step_saves_and_goes_on(records, tmp_path, monkeypatch):
    fit(records, tmp_path / "whole", accumulate_grad_batches=2)
    with monkeypatch.context() as patch:
        patch.setattr(Stops, "is_asking", True)
        fit(records, tmp_path / "cut", accumulate_grad_batches=2)
    last = complete_checkpoints(tmp_path / "cut")[-1]
    assert last.name == "step=000003.ckpt"
    fit(records, tmp_path / "cut", ckpt_path=last, accumulate_grad_batches=2)
    *_, names = what_it_left(tmp_path / "cut")
    assert_equal((*what_it_left(tmp_path / "cut")[:3], [name for name in names if name != last.name]),
                 what_it_left(tmp_path / "whole"))  # fmt: skip


def test_a_stages_checkpoint_that_someone_took_away_is_written_anew(records, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Deletes, "is_deleting", True)
        fit(records, tmp_path)
    [last] = complete_checkpoints(tmp_path)
    assert last.name == "step=000004-math.ckpt"


def test_no_steps_are_no_steps(records, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):  # which the helper reads
        fit(records, tmp_path, max_steps=0)
    assert not (tmp_path / "stages").exists() and not complete_checkpoints(tmp_path)


def test_another_run_goes_on_from_a_stage_that_it_took_over_and_from_no_other(records, whole, tmp_path):
    first = records / "whole" / "checkpoints" / "step=000002-code.ckpt"
    shared = [{"stage": "code", "key": "", "run": "whole"}]
    with pytest.raises(ValueError, match=r"differs from the checkpoint's in: .*schedule"):
        fit(records, tmp_path / "unsaid", last="general", ckpt_path=first)
    for folder in ("other", "scratch", "faster"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / identity.REUSED_FILE).write_text(json.dumps(shared))
    fit(records, tmp_path / "other", last="general", ckpt_path=first)
    fit(records, tmp_path / "scratch", last="general")
    mine, theirs = (what_it_left(tmp_path / folder)[2]["1-general"] for folder in ("other", "scratch"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    with pytest.raises(ValueError, match=r"differs from the checkpoint's in: .*gradient_clip_val"):
        fit(records, tmp_path / "faster", last="general", ckpt_path=first, gradient_clip_val=0.1)
    with pytest.raises(ValueError, match=r"differs from the checkpoint's in: .*schedule"):
        later = records / "whole" / "checkpoints" / "step=000004-math.ckpt"
        fit(records, tmp_path / "faster", last="general", ckpt_path=later)


@pytest.fixture
def cut(records, tmp_path):
    """A run that stopped inside its second stage; its checkpoint."""
    fit(records, tmp_path, max_steps=3)
    return complete_checkpoints(tmp_path)[-1]


def test_a_run_goes_on_under_a_later_version_that_trains_alike(records, whole, cut, monkeypatch):
    monkeypatch.setattr(resume_guard, "__version__", "99.0.0")
    content = torch.load(cut, weights_only=True)
    content[STATE]["of a later version"] = 1
    torch.save(content, cut)
    fit(records, cut.parents[1], ckpt_path=cut)
    lines, scores, weights, _ = what_it_left(cut.parents[1])
    assert (lines, scores) == whole[:2]
    assert all(torch.equal(weights["1-math"][name], tensor) for name, tensor in whole[2]["1-math"].items())


def test_a_version_that_trains_otherwise_is_told_with_both_versions(records, cut, monkeypatch):
    monkeypatch.setattr(resume_guard, "__version__", "99.0.0")
    monkeypatch.setattr(identity, "RULES", identity.RULES + 1)
    said = rf"written by sftlab {sftlab.__version__}, this is 99\.0\.0\) in: how sftlab trains"
    with pytest.raises(ValueError, match=said):
        fit(records, cut.parents[1], ckpt_path=cut)


def test_a_checkpoint_of_a_version_that_kept_less_is_refused_in_words(records, cut):
    content = torch.load(cut, weights_only=True)
    for name in ("version", "stage_keys"):
        del content[STATE][name]
    torch.save(content, cut)
    with pytest.raises(ValueError, match=r"by sftlab an earlier version, this is .* does not hold stage_keys"):
        fit(records, cut.parents[1], ckpt_path=cut)


def test_training_needs_no_room_for_temporary_files(records, whole, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", tempfile.gettempdir())

    for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory"):
        monkeypatch.setattr(tempfile, name, full)
    fit(records, tmp_path)
    assert_equal(what_it_left(tmp_path), whole)


def test_gone_back_to_an_earlier_checkpoint_a_sharded_stage_takes_the_place_of_the_one_before(records, tmp_path):
    register_strategies()
    one = {"strategy": "fsdp2", "devices": 1}
    fit(records, tmp_path, **one)
    first = what_it_left(tmp_path)
    code, math = complete_checkpoints(tmp_path)
    assert code.is_dir() and math.is_dir()
    stale = math / "stale"
    stale.touch()
    fit(records, tmp_path, ckpt_path=code, **one)
    assert is_whole(math) and not stale.exists()
    assert_equal(what_it_left(tmp_path), first)


def test_a_resume_goes_on_without_a_callback_that_may_change_training_and_says_so(records, whole, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiesAfter, "stage", "code")
        with pytest.raises(Killed):
            fit(records, tmp_path)
    newest, data = complete_checkpoints(tmp_path)[-1], small_mixture(records)
    schedule = Sequential(order=["code", "math"], steps=2)
    with pytest.raises(ValueError, match=r"differs from the checkpoint's in: .*trainer\.callbacks"):
        small_fit(tmp_path, schedule, data, DiesBefore(), DiesAfter(), SaysIt(), ckpt_path=newest)
    small_fit(tmp_path, schedule, data, ckpt_path=newest)
    assert "callbacks of yours" in capsys.readouterr().out
    weights = load_file(tmp_path / "stages" / "1-math" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[2]["1-math"].items())
    last = complete_checkpoints(tmp_path)[-1]
    small_fit(tmp_path, schedule, data, ckpt_path=last)  # what it went on with is remembered
    assert "callbacks of yours" in capsys.readouterr().out


class TimeIsUp(Callback):
    """Moves the clock of max_time beyond it in the middle of a step."""

    changes_training = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 5:
            (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
            timer._offset = 10.0**6


def test_max_time_inside_accumulation_ends_with_the_step_and_goes_on_to_the_same_weights(records, tmp_path):
    one, options = MultiTask(steps=4), {"accumulate_grad_batches": 4}
    wanted, _ = small_fit(tmp_path / "whole", one, small_mixture(records), **options)
    cut = tmp_path / "cut"
    _, lines = small_fit(cut, one, small_mixture(records), TimeIsUp(), max_time="00:01:00:00", **options)
    assert max(line["step"] for line in lines) == 2
    (checkpoint,) = complete_checkpoints(cut)
    assert checkpoint.name == "step=000002.ckpt"
    model, lines = small_fit(cut, one, small_mixture(records), ckpt_path=checkpoint, **options)
    assert sorted(line["step"] for line in lines if "train/loss" in line) == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))
