"""Answers are graded while the next stage trains: nothing else changes, nothing that is owed is lost."""

import json
import signal
import threading

import pytest
from fitting import ROOT, environment, write_records
from forked import FORKING
from lightning.pytorch import Callback
from small import small_fit, small_mixture, trained

from sftlab.callbacks.schedule import Sequential
from sftlab.callbacks.scores import ScoreAbilities
from sftlab.processes import free_port
from sftlab.run.folder import JUDGING_FILE, complete_checkpoints, owed_scores
from sftlab.run.settings import Settings
from sftlab.study.freed import has_checkpoint
from sftlab.tasks.task import Problem, Sampling, Task, Verdict

SCHEDULE = {"order": ["code", "math"], "steps": 3}


class Slow(Task):
    """A judge that answers when it is let go."""

    name, sampling = "slow", Sampling(max_new_tokens=2)

    def __init__(self):
        self.let_go, self.graded, self.fails_at = threading.Event(), [], 0

    def problems(self):
        return [Problem(str(number), (f"What is {number}?",)) for number in range(3)]

    def grade(self, problems, answers):
        self.graded.append((threading.current_thread() is threading.main_thread(), len(answers)))
        assert self.let_go.wait(60)
        if len(self.graded) == self.fails_at:
            raise ValueError("the judge is gone")
        return [Verdict(a.uid, a.sample, "length", None, float(len(a.texts[0]) % 2), "") for a in answers]


class Watch(Callback):
    """What a run owes at each step; lets the judge go, or ends the run."""

    changes_training = False

    def __init__(self, task, folder, let_go_at=None, killed_at=None):
        self.task, self.folder, self.owed = task, folder, {}
        self.let_go_at, self.killed_at = let_go_at, killed_at

    def on_train_batch_start(self, trainer, *_):
        step = trainer.global_step
        self.owed[step] = [(place["step"], place["ability"]) for place in owed_scores(self.folder)]
        if step == self.let_go_at:
            self.task.let_go.set()
        if step == self.killed_at:
            raise KeyError("killed")


def fit(records, name, task, background=True, ckpt_path=None, **watched):
    folder, watch = records / name, Watch(task, records / name, **watched)
    scores = ScoreAbilities({"math": task}, background=background)
    how = {"enable_checkpointing": False, "ckpt_path": ckpt_path}
    _, lines = small_fit(folder, Sequential(**SCHEDULE), small_mixture(records), scores, watch, **how)
    return lines, watch, [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def records(module_records):
    return module_records


@pytest.fixture(scope="module")
def plain(records):
    task = Slow()
    task.let_go.set()
    return fit(records, "plain", task, background=False)


class End:
    """A stage, as a study asks for it."""

    name, end_step, key = "code", 3, ""


def test_training_goes_on_and_nothing_else_changes(records, plain):
    task = Slow()
    lines, watch, rows = fit(records, "behind", task, let_go_at=5)
    assert watch.owed[0] == [] and watch.owed[3] == watch.owed[5] == [(3, "math")]
    assert task.graded == [(False, 3), (False, 3)]
    assert rows == plain[2] and [row["step"] for row in rows] == [3, 6]
    assert trained(lines) == trained(plain[0])

    def logged(lines):
        return {(line["step"], line["score/math/slow"]) for line in lines if "score/math/slow" in line}

    assert logged(lines) == logged(plain[0]) and not (records / "behind" / JUDGING_FILE).exists()
    assert has_checkpoint(records / "behind", End())


@pytest.mark.parametrize("background", [True, False])
def test_a_killed_run_grades_what_it_owes(records, plain, background):
    task, name = Slow(), f"killed-{background}"
    with pytest.raises(KeyError, match="killed"):
        fit(records, name, task, killed_at=4)
    folder = records / name
    assert [place["step"] for place in owed_scores(folder)] == [3] and not (folder / "scores.jsonl").read_text()
    assert not has_checkpoint(folder, End()), "another run would take the stage over without its score"
    task.let_go.set()
    again = Slow()
    again.let_go.set()
    answers = (folder / "answers" / "step=000003-code" / "slow.answers.jsonl").read_text()
    _, _, rows = fit(records, name, again, background, complete_checkpoints(folder)[-1])
    assert rows == plain[2] and not (folder / JUDGING_FILE).exists()
    assert (folder / "answers" / "step=000003-code" / "slow.answers.jsonl").read_text() == answers


@pytest.mark.parametrize(("fails_at", "step"), [(1, 3), (2, 6)], ids=["a stage", "the last stage"])
def test_a_judge_that_fails_ends_the_run_in_its_words_and_is_asked_again(records, plain, fails_at, step):
    task, folder = Slow(), records / f"failed-{step}"
    task.let_go.set()
    task.fails_at = fails_at
    with pytest.raises(ValueError, match="the judge is gone"):
        fit(records, folder.name, task)
    assert [place["step"] for place in owed_scores(folder)] == [step]
    task.fails_at = 0
    lines, _, rows = fit(records, folder.name, task, ckpt_path=complete_checkpoints(folder)[-1])
    assert rows == plain[2] and trained(lines) == trained(plain[0])


def test_a_damaged_note_is_told(tmp_path):
    (tmp_path / JUDGING_FILE).write_text("[1]")
    with pytest.raises(ValueError, match=r"judging\.json is damaged: delete it"):
        owed_scores(tmp_path)


def test_when_answers_are_graded_is_no_part_of_a_runs_identity():
    one, other = (Settings.of_arguments({"callbacks": [ScoreAbilities(background=b)]}, 1) for b in (True, False))
    assert one == other != Settings.of_arguments({"callbacks": [ScoreAbilities(before=True)]}, 1)


@pytest.mark.slow
def test_several_processes_that_were_killed_grade_what_they_owe(tmp_path):
    write_records(tmp_path)
    script = str(ROOT / "tests" / "judged_runs.py")

    def start(phase):
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "PL_GLOBAL_SEED": "1"}
        ranks = [
            FORKING.start([script, str(tmp_path), "2", phase], tmp_path, {**environment(tmp_path), **together, **rank})
            for rank in ({"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"})
        ]
        said = ranks[0].communicate()
        if ranks[0].returncode:
            ranks[1].send_signal(signal.SIGKILL)
        ranks[1].communicate()
        return ranks[0].returncode, said[1]

    killed = tmp_path / "killed"
    assert start("first")[0] == -signal.SIGKILL
    assert [(place["step"], place["ability"]) for place in owed_scores(killed)] == [(3, "math")]
    assert not (killed / "scores.jsonl").read_text()
    status, said = start("again")
    assert status == 0, said[-3000:]
    assert not (killed / JUDGING_FILE).exists()
    assert (killed / "scores.jsonl").read_text() == (tmp_path / "plain" / "scores.jsonl").read_text()
