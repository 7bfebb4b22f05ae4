"""What bases read holds the skills and none of the fine-tuning data."""

import random
import re

from sftlab.lab.abilities import lab_conversations, lab_problems
from sftlab.lab.registers import FRIENDLY, MARKED, QUESTIONS
from sftlab.lab.samples import ABILITIES
from sftlab.lab.text import base_text
from sftlab.lab.words import KNOWN_VERBS, LESS, MORE, RELATIONS, TIMES, UP

TEXTS = [base_text(rng) for rng in [random.Random("a test's text")] for _ in range(20_000)]


def test_the_same_seed_gives_the_same_text():
    again = random.Random("a test's text")
    assert [base_text(again) for _ in range(100)] == TEXTS[:100]


def test_no_prompt_of_any_ability_stands_in_it():
    whole = "\n".join(TEXTS)
    for ability in ABILITIES:
        for prompts in (
            [c.turns[0].text for c in lab_conversations(ability, 500)],
            [p.prompts[0] for p in lab_problems(ability, 500)],
        ):
            assert not [prompt for prompt in prompts if prompt in whole]


def test_it_has_words_of_its_own_for_openings_and_questions():
    whole = "\n".join(TEXTS)
    fixed = [question.split("{")[0] for questions in QUESTIONS.values() for question in questions]
    assert not [words for words in (*MARKED, *FRIENDLY, *fixed, "####", "Just use") if words in whole]


def test_rare_verbs_facts_and_translations_are_left_to_fine_tuning():
    words = set(re.findall(r"\w+", "\n".join(TEXTS)))
    things_too = {"leaves"}  # a thing as well as a verb
    assert not (words - things_too) & set(MORE[KNOWN_VERBS["math"] :] + LESS[KNOWN_VERBS["math"] :])
    assert not words & set(UP[KNOWN_VERBS["code"] :] + TIMES[KNOWN_VERBS["times"] :])
    assert not words & {value for values in RELATIONS.values() for value in values}
    assert not any(re.search(r"Lumi|Tavo", text) for text in TEXTS)


def test_its_sums_are_right():
    found = 0
    for text in TEXTS[:3000]:
        for left, sign, right, result in re.findall(r"(?<![\d)*+-])(\d+)([+*-])(\d+)=(\d+)", text):
            value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
            assert value == int(result)
            found += 1
    assert found > 1000
