"""Answers by several ranks: those of one process, whichever rank gave them."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401 - once, and not in each rank that is forked
from torch import distributed, multiprocessing
from transformers import AutoModelForCausalLM

from sftlab.evaluate.local import LocalModel
from sftlab.evaluate.run import run_task
from sftlab.evaluate.spread import first_rank_asks, first_rank_works
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.backbone import load_config
from sftlab.tasks.lab import LabTask
from sftlab.tasks.task import Problem, Sampling

ASKED = [Problem(str(i), tuple(f"{'one two three ' * (i % 4)}{i}" for _ in range(1 + i % 2))) for i in range(13)]
SAMPLINGS = (Sampling(8), Sampling(6, temperature=0.9, num_samples=3))
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>{% else %}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(load_config("lab-small", None)).save_pretrained(folder)
    tokenizer = lab_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def all_of(backend: LocalModel) -> list[dict]:
    """Every answer, in an order of its own."""
    found = [asdict(one) for sampling in SAMPLINGS for group in backend.answer(ASKED, sampling) for one in group]
    return sorted(json.loads(json.dumps(found)), key=json.dumps)


def rank_of_two(rank: int, folder: Path) -> None:
    """Scores twice; the second time, the second rank does not see the model. Notes who answered what."""
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)  # of a forked process, more wait for one another
    answer, own = LocalModel.answer, []

    def noted(self, problems, sampling):
        own.extend(problem.uid for problem in problems)
        return answer(self, problems, sampling)

    LocalModel.answer = noted
    for case, model in (("shared", folder / "model"), ("hidden", folder / ("nowhere" if rank else "model"))):
        place = folder / case
        place.mkdir(exist_ok=True)
        own.clear()
        with first_rank_asks(model, 2, "cpu") as backend:
            assert (backend is None) == (rank > 0)
            if backend is not None:
                (place / "answers.json").write_text(json.dumps(all_of(backend)))
                run_task(LabTask("math", 5), backend, place / "task", {})
        (place / f"own{rank}.json").write_text(json.dumps(own))
    with first_rank_works():
        if rank == 0:
            time.sleep(0.5)
            (folder / "worked").touch()
    assert (folder / "worked").exists()
    (folder / f"waited{rank}").touch()
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=write_model, args=(folder / "model",))  # what loads a model may not be forked later
    writer.start()
    writer.join()
    multiprocessing.start_processes(rank_of_two, (folder,), nprocs=2, start_method="fork")
    return folder


def test_two_ranks_answer_as_one_process_does(two_ranks, tmp_path):
    one = LocalModel.from_folder(two_ranks / "model", 2, "cpu")
    wanted = all_of(one)
    run_task(LabTask("math", 5), one, tmp_path, {})
    for case in ("shared", "hidden"):
        assert json.loads((two_ranks / case / "answers.json").read_text()) == wanted
        for name in ("scores.jsonl", "lab_math.problems.jsonl"):
            assert (two_ranks / case / "task" / name).read_text() == (tmp_path / name).read_text()


@pytest.mark.parametrize("case", ["shared", "hidden"])
def test_each_rank_that_sees_the_model_answers_its_part(two_ranks, case):
    first, second = (json.loads((two_ranks / case / f"own{rank}.json").read_text()) for rank in (0, 1))
    asked = [problem.uid for problem in (*ASKED, *ASKED, *LabTask("math", 5).problems())]
    assert sorted(first + second) == sorted(asked)
    assert abs(len(first) - len(second)) <= 9 if case == "shared" else not second


def test_the_others_wait_until_the_first_rank_has_worked(two_ranks):
    assert (two_ranks / "waited0").exists() and (two_ranks / "waited1").exists()
