"""Generation: answers that depend on neither batch nor order; a killed evaluation that goes on; likelihood."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftlab.data.conversation import Turn
from sftlab.data.encoder import Encoder
from sftlab.data.template import get_template
from sftlab.evaluate.local import LocalModel
from sftlab.evaluate.run import cut_lines, read_jsonl, run_task
from sftlab.lab.abilities import lab_conversations
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.backbone import generation_ends, load_config
from sftlab.tasks.lab import LabTask
from sftlab.tasks.likelihood import Likelihood
from sftlab.tasks.task import Answer, Problem, Sampling


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(load_config("lab-small", None), attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def encoder():
    return Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer()))


def problems(n=13):
    words = "apples books coins pens cards shells".split()
    return [
        Problem(str(i), tuple(f"{' '.join(words[: 1 + i % 6])} {i}" for _ in range(1 + i % 2)), temperature=None)
        for i in range(n)
    ]


def answers(model, encoder, batch_size, sampling, asked=None):
    groups = LocalModel(model, encoder, batch_size).answer(asked or problems(), sampling)
    return {(answer.uid, answer.sample): answer for group in groups for answer in group}


@pytest.mark.parametrize("sampling", [Sampling(24), Sampling(12, temperature=0.9, num_samples=3)])
def test_answers_depend_on_neither_batch_size_nor_order(model, encoder, sampling):
    one_by_one = answers(model, encoder, 1, sampling)
    assert len(one_by_one) == 13 * sampling.num_samples
    assert answers(model, encoder, 5, sampling) == one_by_one
    assert answers(model, encoder, 64, sampling, problems()[::-1]) == one_by_one
    if sampling.temperature:
        assert len({answer.texts for answer in one_by_one.values() if answer.uid == "3"}) == 3


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_long_text_beside_it_changes_no_answer_where_positions_scale_with_the_longest(encoder, kind):
    config = load_config("lab-small", None)
    most, half = 40, config.hidden_size // config.num_attention_heads // 2
    config.max_position_embeddings = most if kind == "dynamic" else 160
    scaled = {"factor": 4.0, "original_max_position_embeddings": most}
    scaled |= {"short_factor": [1.0] * half, "long_factor": [8.0] * half} if kind == "longrope" else {}
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": kind, **scaled}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    local = LocalModel(model, encoder, 64)
    local.max_positions = 160
    asked = [Problem(str(i), (" ".join(["apples"] * i),)) for i in (1, 3, 12, 60)]
    assert [len(encoder.prompt_ids([Turn("user", one.prompts[0])])) > most for one in asked] == [False] * 3 + [True]
    found = {answer.uid: answer for group in local.answer(asked, Sampling(24)) for answer in group}
    for one in asked:  # as the whole text says, computed alone
        ids, said = encoder.prompt_ids([Turn("user", one.prompts[0])]), []
        while len(said) < 24 and not (said and said[-1] in encoder.stop_ids):
            said.append(int(model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax()))
        assert found[one.uid].texts == (encoder.decode([i for i in said if i not in encoder.stop_ids]),)


def test_greedy_answers_are_those_of_transformers(model, encoder):
    mine = answers(model, encoder, 8, Sampling(16), problems(4))
    for problem in problems(4):
        ids = torch.tensor([encoder.prompt_ids([Turn("user", problem.prompts[0])])])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
                                eos_token_id=encoder.stop_ids, pad_token_id=0)  # fmt: skip
        text = encoder.decode([i for i in output[0, ids.shape[1] :].tolist() if i not in encoder.stop_ids])
        assert mine[problem.uid, 0].texts[0] == text


def test_an_answer_ends_at_every_token_that_the_models_makers_name(tmp_path, model, encoder):
    ids = torch.tensor([encoder.prompt_ids([Turn("user", problems(1)[0].prompts[0])])])
    first = int(model(ids).logits[0, -1].argmax())
    assert first not in encoder.stop_ids
    model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [first, *encoder.stop_ids]}))
    assert generation_ends(str(tmp_path)) == [first, *encoder.stop_ids] and generation_ends("lab-small") == []
    local = LocalModel.from_folder(tmp_path, template=encoder.template.name)
    ((answer,),) = local.answer(problems(1), Sampling(8))
    assert answer.texts == ("",) and answers(model, encoder, 1, Sampling(8), problems(1))["0", 0].texts != ("",)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        LocalModel.from_folder(tmp_path)
    config.unlink()
    assert generation_ends(str(tmp_path)) == []


def test_a_killed_evaluation_asks_only_for_what_is_missing(tmp_path, model, encoder):
    task, asked, kill = LabTask("math", num_problems=10, max_new_tokens=8), [], [True]

    class Counting(LocalModel):
        def answer(self, given, sampling):
            for number, group in enumerate(super().answer(given, sampling)):
                if number == 1 and kill and kill.pop():
                    raise KeyboardInterrupt
                asked.append(len(group))
                yield group

    backend = Counting(model, encoder, 4)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, backend, tmp_path, {"checkpoint": "a"})
    path = tmp_path / "lab_math.answers.jsonl"
    kept = len(path.read_text().splitlines()) - 1
    with path.open("a") as file:
        file.write('{"uid": "cut')
    kill[:], asked[:] = [False, False], []
    scores, verdicts, found = run_task(task, backend, tmp_path, {"checkpoint": "a"})
    assert sum(asked) == 10 - kept and len(found) == 10 and len(verdicts) == 2 * 10  # right or not, and the style
    assert scores[0].num_problems == 10
    assert read_jsonl(tmp_path / "scores.jsonl")[0]["checkpoint"] == "a"
    line = json.loads((tmp_path / "lab_math.problems.jsonl").read_text().splitlines()[0])
    assert {"prompts", "answers", "extracted", "value", "reason"} <= line.keys()
    asked.clear()
    run_task(task, backend, tmp_path, {"checkpoint": "b"})  # another checkpoint: nothing may be reused
    assert sum(asked) == 10


def test_answers_that_were_cut_are_counted():
    task = LabTask("math", num_problems=3, max_new_tokens=8)
    ended, cut = Answer("a", 0, ("1", "2"), (True, True)), Answer("b", 0, ("1", "2"), (True, False))
    (line,) = cut_lines(task, [ended, cut, cut])
    assert "2 of 3 answers were cut at max_new_tokens (8)" in line
    assert cut_lines(task, [ended, Answer("c", 0, (), (), missing="a content filter")]) == cut_lines(task, []) == []


def test_likelihood_is_that_of_separate_conversations(tmp_path, model, encoder, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    talks = list(lab_conversations("general", 9))
    rows = [{"messages": [turn._asdict() | {"content": turn.text} for turn in talk.turns]} for talk in talks]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {s.metric: s for s in Likelihood(str(tmp_path / "a.jsonl")).measure(LocalModel(model, encoder, 4))}
    total, tokens, size = 0.0, 0, 0
    for talk in talks:
        encoded = encoder.encode([encoder.template.render([Turn(*turn) for turn in talk.turns])])[0]
        ids = torch.tensor([encoded.ids.tolist()])
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        mask = [bool(number % 2) for number, run in enumerate(encoded.runs) for _ in range(run)]
        total += float(nll[torch.tensor(mask[1:])].sum())
        tokens += sum(mask)
        size += sum(len(f" {turn.text}</s>".encode()) for turn in talk.turns if turn.role == "assistant")
    assert scores["loss"].value == pytest.approx(total / tokens, rel=1e-4)
    assert scores["perplexity"].value == pytest.approx(math.exp(total / tokens), rel=1e-3)
    assert scores["bits_per_byte"].value == pytest.approx(total / math.log(2) / size, rel=1e-4)
