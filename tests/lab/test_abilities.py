"""Generated abilities: deterministic, split for good, and each dial does what it says."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.data.conversation import Conversation
from sftlab.lab.abilities import lab_conversations, lab_problems
from sftlab.lab.grading import grade_turns
from sftlab.lab.options import LabOptions
from sftlab.lab.registers import OPENINGS, QUESTIONS, SPECIALISED, TALK, probabilities
from sftlab.lab.samples import ABILITIES

NAMES = tuple(ABILITIES)
DIALS = st.builds(LabOptions, *[st.sampled_from([0.0, 0.3, 0.7, 1.0])] * 4, seed=st.integers(0, 3))


def _answers(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.turns if turn.role == "assistant"]


def _digest() -> str:
    options = LabOptions(noise=0.1, seed=3)
    texts = [t.text for a in NAMES for c in lab_conversations(a, 50, options=options) for t in c.turns]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_same_conversations_in_another_process():
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_abilities as test; print(test._digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == _digest()


@pytest.mark.parametrize("ability", NAMES)
def test_fewer_are_the_first_of_more_and_none_comes_twice(ability):
    many = list(lab_conversations(ability, 3000))
    assert list(lab_conversations(ability, 100)) == many[:100]
    assert len({c.turns for c in many}) == 3000
    assert list(lab_conversations(ability, 100, options=LabOptions(seed=1))) != many[:100]


@pytest.mark.parametrize("ability", NAMES)
def test_no_opening_is_both_trained_and_tested_whatever_the_dials_and_seeds(ability):
    dials = [LabOptions(seed=0), LabOptions(seed=1), LabOptions(ambiguity=1, difficulty=0.2, noise=0.5, seed=2)]
    trained = {c.turns[0].text for options in dials for c in lab_conversations(ability, 3000, options=options)}
    for options in dials:
        assert not trained & {p.prompts[0] for p in lab_problems(ability, 300, options)}


@pytest.mark.parametrize("ability", NAMES)
def test_thousands_of_problems_cost_nothing(ability):
    problems = lab_problems(ability, 2000)
    assert len({p.uid for p in problems}) == 2000
    other = {p.uid for p in lab_problems(ability, 2000, LabOptions(seed=1))}
    assert len(other & {p.uid for p in problems}) < 2000


@pytest.mark.parametrize("ability", NAMES)
@given(options=DIALS)
@settings(max_examples=10, deadline=None)
def test_own_answers_are_right_and_others_wrong(ability, options):
    problems = lab_problems(ability, 40, options)
    told = list(lab_conversations(ability, 40, split="test", options=options))
    for problem, conversation in zip(problems, told, strict=True):
        assert list(problem.prompts) == [t.text for t in conversation.turns if t.role == "user"]
        texts = _answers(conversation)
        assert grade_turns(problem.reference, texts)[0]
        right, _, reason = grade_turns(problem.reference, [*texts[:-1], ""])
        assert not right and reason


@pytest.mark.parametrize("ability", NAMES)
def test_references_are_plain_json_and_every_kind_comes_up(ability):
    problems = lab_problems(ability, 400)
    assert json.loads(json.dumps([p.reference for p in problems])) == [p.reference for p in problems]
    kinds = {p.kind for p in problems}
    assert kinds == set(ABILITIES[ability].kinds)
    for kind in kinds:
        told = lab_conversations(ability, 20, exclude=[other for other in kinds if other != kind])
        assert len(list(told)) == 20
    with pytest.raises(ValueError, match="every kind is left out"):
        list(lab_conversations(ability, 1, exclude=sorted(kinds)))


def test_second_turns_need_the_first():
    second: dict[str, set[str]] = {}
    for conversation in lab_conversations("general", 2000):
        if len(conversation.turns) == 4:
            _, _, question, answer = (turn.text for turn in conversation.turns)
            second.setdefault(question, set()).add(answer)
    assert len(second) == 4 and all(len(answers) >= 20 for answers in second.values())


def test_math_answers_follow_from_the_words():
    """Each step goes on from the last, uses the sentence's numbers in their order, and is reckoned right."""
    for conversation in lab_conversations("math", 500):
        question, answer = (turn.text for turn in conversation.turns)
        said = [2 if word == "doubles" else int(word) for word in re.findall(r"\d+|doubles", question)]
        *lines, last = answer.split("\n")
        held, used = said[0], []
        for line in lines:
            left, sign, right, result = re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+)", line).groups()
            assert int(left) == held
            held = {"+": held + int(right), "-": held - int(right), "*": held * int(right)}[sign]
            assert held == int(result)
            used.append(int(right))
        assert used == said[1:] and last == f"#### {held}"


def _share(kinds: list[str], *wanted: str) -> float:
    return sum(kind in wanted for kind in kinds) / len(kinds)


def test_overlap_is_the_share_of_talk_that_asks_like_math_and_code():
    for overlap in (0.0, 0.25, 0.6, 1.0):
        kinds = [p.kind for p in lab_problems("general", 1000, LabOptions(overlap=overlap))]
        assert abs(_share(kinds, "arithmetic", "python") - overlap) < 0.05
        assert abs(_share(kinds, "arithmetic") - overlap / 2) < 0.05


def test_ambiguity_is_how_often_prompts_could_come_from_either():
    def openings(ability: str, ambiguity: float) -> set[str]:
        options = LabOptions(overlap=1, ambiguity=ambiguity)
        prompts = [c.turns[0].text for c in lab_conversations(ability, 500, options=options)]
        return {next((o for o in OPENINGS if o and prompt.startswith(o)), "") for prompt in prompts}

    assert not openings("math", 0) & openings("general", 0)
    assert openings("general", 1) == {""} < openings("math", 1)
    for ambiguity in (0.0, 0.4, 1.0):
        for register in (SPECIALISED, TALK):
            assert sum(p for _, p in probabilities(register, ambiguity)) == pytest.approx(1)


def test_prompts_of_talk_and_of_math_are_worded_from_the_same_questions():
    asked = {"math": set(), "general": set()}
    for ability, found in asked.items():
        for conversation in lab_conversations(ability, 2000):
            for number, question in enumerate(QUESTIONS["math"]):
                pattern = re.escape(question).replace(r"\{thing\}", r"\w+").replace(r"\{name\}", r"\w+")
                found |= {number} if re.search(pattern, conversation.turns[0].text) else set()
    assert asked["math"] == asked["general"] == {0, 1, 2, 3}


@pytest.mark.parametrize("ability", NAMES)
def test_noise_is_the_share_of_wrong_answers_and_more_of_it_keeps_what_was_noisy(ability):
    def wrong(noise: float) -> dict[str, str]:
        clean = {c.turns[0].text: c for c in lab_conversations(ability, 1000)}
        noisy = {c.turns[0].text: c for c in lab_conversations(ability, 1000, options=LabOptions(noise=noise))}
        assert list(clean) == list(noisy)
        return {p: c.turns[1].text for p, c in noisy.items() if _answers(c) != _answers(clean[p])}

    few, many = wrong(0.1), wrong(0.3)
    assert abs(len(few) / 1000 - 0.1) < 0.03 and abs(len(many) / 1000 - 0.3) < 0.05
    assert few.items() <= many.items()
    assert wrong(0) == {}
    assert lab_problems(ability, 50, LabOptions(noise=1)) == lab_problems(ability, 50)


def test_difficulty_is_the_number_of_steps():
    def steps(difficulty: float) -> float:
        kinds = [p.kind for p in lab_problems("math", 500, LabOptions(difficulty=difficulty))]
        return sum(int(kind[0]) for kind in kinds) / len(kinds)

    assert steps(1) == 4 and 2.3 < steps(0.5) < 2.7
    assert max(map(int, re.findall(r"\d+", lab_problems("math", 1, LabOptions(difficulty=0))[0].prompts[0]))) <= 20


def test_kinds_can_be_left_out():
    texts = [t.text for c in lab_conversations("general", 2000, exclude=["arithmetic", "python"]) for t in c.turns]
    assert not any("function" in text or "How many" in text for text in texts)


def test_facts_are_the_same_whoever_asks():
    told: dict[str, set[str]] = {}
    for seed in (0, 1):
        for c in lab_conversations("facts", 2000, options=LabOptions(seed=seed)):
            asked = re.sub(
                r"^(\w+ ?\w*:|Hi,|Hey,) | (One word|Be short|Please|Thanks|I wonder)[.?!]$", "", c.turns[0].text
            )
            told.setdefault(asked, set()).add(c.turns[1].text)
    assert len(told) > 300 and all(len(answers) == 1 for answers in told.values())


def test_translations_turn_back():
    there = {}
    for c in lab_conversations("translation", 2000):
        language, sentence = re.fullmatch(r"Say in (\w+): (.*)", c.turns[0].text).groups()
        for word, other in zip(sentence.split(), reversed(c.turns[1].text.split()), strict=True):
            assert there.setdefault((language, word), other) == other
    pairs = {(word, other) for (language, word), other in there.items() if language == "Tavo"}
    assert pairs == {(other, word) for (language, word), other in there.items() if language == "Lumi"}


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="poetry"):
        list(lab_conversations("poetry", 1))
    with pytest.raises(ValueError, match=r"'sums' is not one of greeting"):
        list(lab_conversations("general", 1, exclude=["sums"]))
    with pytest.raises(ValueError, match="neither train nor test"):
        list(lab_conversations("math", 1, split="dev"))
    with pytest.raises(ValueError, match="ask for fewer"):
        list(lab_conversations("facts", 10**5, exclude=["pet", "drink", "sport", "instrument", "dish"]))
    with pytest.raises(ValueError, match=r"lab.overlap: 1.5 does not lie between 0 and 1"):
        LabOptions(overlap=1.5)
