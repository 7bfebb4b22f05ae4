"""Scorers are honest: whatever style answers what was asked is right, whatever does not is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.lab.abilities import lab_conversations, lab_problems
from sftlab.lab.grading import grade_turns, style_of
from sftlab.lab.options import LabOptions

NUMBER = ["number", 1200]
_RIGHT = [
    "#### 1200",
    "#### 1,200",
    "####1200.0",
    "so 7\n#### 7\n#### 1200",
    "1200",
    "Tom has 1200 now.",
    "600*2=1200",
    "600 * 2 = 1200\nso 1200.",
    "That is 600*2, which makes 1200.",
]
_WRONG = [
    "#### 120",
    "#### -1200",
    "####",
    "",
    "#### " + "9" * 9000,
    "1200 is less than 1300",
    "Tom has 0+1200 now.",
    "0 + 1200",
    "(600)*1200",
    "1.200",
    "1200x",
]


@pytest.mark.parametrize("text", _RIGHT + _WRONG[:-1], ids=lambda text: text[:20])
def test_a_word_problem_wants_its_number(text):
    assert grade_turns([NUMBER], [text])[0] is (text in _RIGHT)


@given(st.integers(0, 10**6), st.sampled_from(["#### {}", "{}", "It is {}.", "3+4=7\nso {}", "{:,} apples"]))
def test_every_number_is_read(number, form):
    assert grade_turns([["number", number]], [form.format(number)])[0]
    assert not grade_turns([["number", number + 1]], [form.format(number)])[0]


CODE = ["function", [[1, 3], [7, 9]]]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("def f(x):\n    x = x + 2\n    return x", True),
        ("def other(y):\n    z = 2\n    return z + y", True),
        ("Sure, here it is:\ndef f(x):\n    return x + 2\nThat is all.", True),
        ("def f(x):\n    return x + 2\n\ndef g(x):\n    return 0", True),
        ("def f(x):\n    return 3", False),
        ("Just use x + 2.", False),
        ("x + 2", False),
        ("def f(x):\n    while True:\n        pass", False),
        ("", False),
    ],
)
def test_code_is_scored_by_what_it_gives_not_how_it_looks(text, right):
    assert grade_turns([CODE], [text])[0] is right


def test_long_values_are_cut_in_reasons():
    long = "def other(y):\n    out = []\n    for i in range(300):\n        out.append(i)\n    return out"
    assert grade_turns([CODE], [long])[2].startswith("gives [0, 1, 2, 3, 4, 5, ...] for ")


FORMULA = ["formula", 19, [12, 3, 4]]  # 12 + 3 + 4


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Tom has 12+3+4 now.", True),
        ("12 + 3 + 4", True),
        ("You add 4+(3+12), I think.", True),
        ("It is 12+3+4=19.", True),  # worked, and the formula is there
        ("12+3=15\n15+4=19\n#### 19", False),  # steps, but no formula of the prompt's numbers
        ("19", False),
        ("12+3*4", False),
        ("12+7", False),
        ("10+9", False),
        ("", False),
    ],
)
def test_math_like_talk_wants_a_formula_of_the_prompts_numbers(text, right):
    assert grade_turns([FORMULA], [text])[0] is right


def test_one_step_worked_out_shows_the_formula_too():
    assert grade_turns([["formula", 15, [12, 3]]], ["12+3=15\n#### 15"])[0]


EXPRESSION = ["expression", "x", [[1, 8], [7, 20], [30, 66]]]  # (x + 3) * 2


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Just use (x + 3) * 2.", True),
        ("2*(x+3)", True),
        ("that would be x * 2 + 6, thanks", True),
        ("def f(x):\n    return (x + 3) * 2", True),  # whatever the style, the expression is there
        ("def f(x):\n    x = x + 3\n    x = x * 2\n    return x", False),
        ("x + 3 * 2", False),
        ("n + 3", False),
        ("x", False),
        ("", False),
    ],
)
def test_code_like_talk_wants_one_expression(text, right):
    assert grade_turns([EXPRESSION], [text])[0] is right


@pytest.mark.parametrize(
    ("text", "right"),
    [("1. pens\n2. cups", True), ("pens and cups!", True), ("cups, pens", False), ("pens", False), ("", False)],
)
def test_talk_wants_its_words_in_order(text, right):
    assert grade_turns([["words", "all", ["pens", "cups"]]], [text])[0] is right


def test_the_first_wrong_turn_is_told():
    reference = [["words", "names", ["Tom"]], ["words", "names", ["Tom"]]]
    assert grade_turns(reference, ["Hello Tom!", "You are Tom."]) == (True, "Tom", "as expected")
    right, found, reason = grade_turns(reference, ["Hello Tom!", "You are Ana."])
    assert (right, found) == (False, "Ana") and reason.startswith("turn 2:")


def test_styles_are_told_apart():
    options = LabOptions(overlap=1)
    own = {"math": "worked", "code": "function", "general": "talk"}
    for ability, style in own.items():
        for conversation in lab_conversations(ability, 300, options=options):
            assert style_of(conversation.turns[1].text) == style


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from("x 1 2 + - * ( ) = def f(x): \n return 9".split(" "))).map(" ".join)
)
def test_any_text_gets_a_verdict(text):
    for reference in (NUMBER, CODE, FORMULA, EXPRESSION, ["words", "names", ["Tom"]]):
        right, _, reason = grade_turns([reference], [text])
        assert right in (True, False) and reason


def test_another_problems_answer_is_hardly_ever_right():
    for ability in ("math", "code", "general", "translation"):
        problems = lab_problems(ability, 300)
        told = list(lab_conversations(ability, 301, split="test"))[1:]
        same = sum(
            grade_turns(p.reference, [t.text for t in c.turns if t.role == "assistant"])[0]
            for p, c in zip(problems, told, strict=True)
            if len(p.prompts) * 2 == len(c.turns)
        )
        assert same < 12
