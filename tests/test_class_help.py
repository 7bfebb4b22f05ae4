"""``--schedule.help DMT`` and the like: every class that a config may hold, by short and full name."""

import inspect

import pytest
from fitting import run

from sftlab import AbilityData, MixturePolicy, Reader, StageSchedule, Task
from sftlab.class_help import class_help
from sftlab.cli import ROOTS
from sftlab.commands.evaluate import main as evaluate
from sftlab.config import subclasses_of
from sftlab.tasks.registry import TASKS

KEYS = {
    "schedule": StageSchedule,
    "data.abilities": AbilityData,
    "data.policy": MixturePolicy,
    "data.abilities.math.reader": Reader,
    "trainer.callbacks.tasks": Task,
}
CLASSES = [
    (key, cls) for key, base in KEYS.items() for cls in subclasses_of(base)
    if cls.__module__.startswith("sftlab.") and not inspect.isabstract(cls)
]  # fmt: skip


@pytest.mark.parametrize(("key", "cls"), CLASSES, ids=[f"{key} {cls.__name__}" for key, cls in CLASSES])
def test_every_class_is_told_by_short_and_full_name(key, cls):
    text = class_help(key, cls.__name__, ROOTS)
    assert text == class_help(key, f"{cls.__module__}.{cls.__name__}", ROOTS)
    arguments = [name for name in inspect.signature(cls).parameters if name != "options"]
    assert all(f"--{key}.{name}  (" in text for name in arguments)
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("class_path") and "--" not in line)


def test_a_key_alone_lists_what_it_may_hold():
    text = class_help("schedule", "", ROOTS)
    assert all(f"\n  {name} " in text for name in ("DMT", "MultiTask", "Sequential", "MixedSequential", "Stages"))
    assert "--data.template" in class_help("data", "", ROOTS) and "--model.path" in class_help("model", "", ROOTS)
    assert "patience" in class_help("trainer.callbacks", "EarlyStopping", ROOTS)


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [("schedule", "DTM", "did you mean DMT"), ("modle", "", "did you mean model"), ("model.path", "", "no class")],
)
def test_what_there_is_not_is_told(key, name, said):
    with pytest.raises(ValueError, match=said):
        class_help(key, name, ROOTS)


def test_it_is_asked_for_on_the_command_line(tmp_path):
    out, _ = run(tmp_path, "fit", "--schedule.help", "DMT")
    assert out.startswith("DMT: ") and "--schedule.k  (float; default 0.00390625)" in out


def test_evaluate_lists_tasks_and_the_options_of_one(capsys):
    assert evaluate(["--tasks.help"]) == 0 and evaluate(["--tasks.help=gsm8k"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in TASKS) and "--gsm8k.path  (str; default hub:" in out
    with pytest.raises(ValueError, match="did you mean gsm8k"):
        evaluate(["--tasks.help", "gsmk"])
