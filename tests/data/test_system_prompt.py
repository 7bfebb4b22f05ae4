"""A system prompt of an ability: in its examples and in what scoring asks, and nowhere else."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftlab.data.ability import GeneralData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.evaluate.run import run_task
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.tasks.task import Answer, Problem, Sampling, Task, Verdict

PROMPT = "Count well."
TALKS = [
    [{"role": "user", "content": "two apples"}, {"role": "assistant", "content": "2"}],
    [{"role": "user", "content": "one pen"}, {"role": "assistant", "content": "1"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "no cup"},
     {"role": "assistant", "content": "0"}],
]  # fmt: skip


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    return str(file)


def loaded(path, tokenizer=None, template="vicuna_v1.1", **options):
    from sftlab.data.readers import MessagesReader

    abilities = {"math": MathData(path, MessagesReader(), **options), "general": GeneralData(path, MessagesReader())}
    data = MixtureData(abilities, template=template, max_length=256)
    data.load(tokenizer or lab_tokenizer())
    return data


def texts(ability, tokenizer):
    table = ability.examples
    return [tokenizer.decode(table.ids(i)) for i in range(len(table))]


@pytest.mark.parametrize("template", ["vicuna_v1.1", "vicuna_short", "alpaca"])
def test_it_stands_first_in_every_example_of_its_ability_that_has_none_of_its_own(path, template):
    tokenizer = lab_tokenizer()
    data = loaded(path, template=template, system=PROMPT)
    with_it, without = (texts(data.abilities[name], tokenizer) for name in ("math", "general"))
    assert [PROMPT in text for text in with_it] == [True, True, False]
    assert not any(PROMPT in text for text in without) and with_it[2] == without[2]
    counts = data.audits()
    assert counts["math"]["kept: its own system turn, instead of the ability's"] == 1
    assert not counts["general"]
    assert (
        data.abilities["math"].examples.supervised_N.tolist()
        == data.abilities["general"].examples.supervised_N.tolist()
    )


def test_which_examples_are_used_does_not_depend_on_it(path):
    one, other = loaded(path, fraction=0.7), loaded(path, system=PROMPT, fraction=0.7)
    assert [pool.uids_N.tolist() for pool in one.pools()] == [pool.uids_N.tolist() for pool in other.pools()]
    assert one.identity()["data of math"] != other.identity()["data of math"]


def test_a_template_without_a_place_for_it_is_refused(path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"template tokenizer has no place .* system: 'Count well\.'"):
        loaded(path, tokenizer, template="tokenizer", system=PROMPT)


def test_an_empty_one_is_refused(path):
    with pytest.raises(ValueError, match="system: the text is empty"):
        MathData(path, system=" ")


class Asked(Task):
    name = "asked"
    sampling = Sampling()

    def problems(self):
        return [Problem("a", ("one?",)), Problem("b", ("two?",), system="Be brief.")]

    def grade(self, problems, answers):
        return [Verdict(answer.uid, answer.sample, "x@1", 1.0, None, "right") for answer in answers]


class Echo:
    """Answers with the system turn that it was given."""

    def answer(self, problems, sampling):
        for problem in problems:
            yield [Answer(problem.uid, 0, (problem.system,), (True,))]


def test_scoring_asks_with_it_and_another_prompt_is_another_measurement(tmp_path):
    rows, _, answers = run_task(Asked(), Echo(), tmp_path, {"checkpoint": "x"}, system=PROMPT)
    assert [answer.texts[0] for answer in answers] == [PROMPT, "Be brief."]
    plain, _, again = run_task(Asked(), Echo(), tmp_path, {"checkpoint": "x"})
    assert again[0].texts[0] == "" and rows[0].fingerprint != plain[0].fingerprint
