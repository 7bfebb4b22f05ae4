"""accumulate_grad_batches: auto takes as few micro-batches as fit, and the steps are the same."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from small import MODEL, small_mixture

import sftlab
from sftlab.callbacks.metrics import Metrics
from sftlab.callbacks.schedule import MultiTask
from sftlab.callbacks.trainer_options import option_problems
from sftlab.model.memory import Setup, estimate
from sftlab.model.module import SFTModule
from sftlab.model.needs import fewest_micro_batches
from sftlab.plan.hardware import GIB, available_bytes

CPU = Setup(precision="32-true", is_cpu=True)


@pytest.fixture(scope="module")
def inputs(module_records):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(module_records)
        yield module_records


def module() -> SFTModule:
    torch.manual_seed(1)
    config = {**MODEL, "attention_dropout": 0.0}
    return SFTModule(None, config=config, tokenizer="lab-base", attention="per_document", learning_rate=1e-2)


class Counted(Callback):
    """How many micro-batches came."""

    changes_training = False

    def __init__(self):
        self.num = 0

    def on_train_batch_end(self, *_):
        self.num += 1


def fit(inputs, accumulate):
    counted = Counted()
    options = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "accumulate_grad_batches": accumulate}
    run = sftlab.fit(data=small_mixture(inputs), schedule=MultiTask(steps=3), model=module(),
                     trainer={**options, "callbacks": [counted, Metrics(every_n_steps=1)]})  # fmt: skip
    return run, counted.num


def test_as_few_as_fit_and_the_same_steps(inputs, capsys):
    data, model = small_mixture(inputs), module()
    plan = MultiTask(steps=3).compile(data, model)
    sizes = {n: estimate(model, plan, Setup(precision="32-true", is_cpu=True, accumulate=n)).total for n in (1, 2, 3)}
    assert sizes[1] > sizes[2] > sizes[3]
    for number, size in [*sizes.items()][::2]:
        setup, needed = fewest_micro_batches(model, plan, CPU, size)
        assert (setup.accumulate, needed) == (number, size)
    alone, _ = fit(inputs, 1)
    capsys.readouterr()
    run, num = fit(inputs, f"auto:{sizes[3] / GIB + 0.001:.3f}GiB")
    stated = re.search(r"Micro-batches of a step: (\d+), by the estimate", capsys.readouterr().out)
    assert stated is not None and num == 3 * int(stated[1]) and int(stated[1]) in (2, 3)
    steps, others = (run.metrics.dropna(subset=["train/loss"]) for run in (run, alone))
    assert list(steps.index) == list(others.index) == [1, 2, 3]
    assert list(steps["train/loss"]) == pytest.approx(list(others["train/loss"]), rel=1e-6)


def test_what_never_fits_is_one_row_each_and_is_told(inputs, capsys):
    _, num = fit(inputs, "auto:0GiB")
    assert num > 3 * 3 and "even that does not fit" in capsys.readouterr().out


def test_the_machines_memory_is_taken_where_none_is_stated(inputs):
    _, num = fit(inputs, "auto")
    assert num == 3 and available_bytes() > 0


@pytest.mark.parametrize("odd", ["automatic", "auto:", "auto:8", "auto:-1GiB", "auto:8GB", 0])
def test_other_words_are_refused(odd):
    assert any("accumulate_grad_batches" in problem for problem in option_problems({"accumulate_grad_batches": odd}))
    assert not option_problems({"accumulate_grad_batches": "auto:8GiB"})
