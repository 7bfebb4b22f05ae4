"""GSM8K: published answers are read, odd ones as stated, votes counted."""

import gzip
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.tasks.gsm8k import EXTRACTORS, GSM8K, flexible, flexible_4, number, strict
from sftlab.tasks.task import Answer, Score, Verdict
from sftlab.tasks.thinking import without_thinking

ODD = [
    # answer, strict@1, flexible@1
    ("#### 18", "18", "18"),
    ("####18", "18", "18"),
    ("####    18", "18", "18"),
    ("####\u00a018", "18", "18"),
    ("#### 18.", "18", "18"),
    ("#### 18.00", "18.00", "18.00"),
    ("#### 18...", "18", "18"),
    ("#### $18", "18", "18"),
    ("#### $ 18", "18", "18"),
    ("#### \\$18", "18", "18"),
    ("#### €1,080.50", "1080.50", "1080.50"),
    ("#### 1,080,000", "1080000", "1080000"),
    ("#### 1\u202f080", "1080", "1080"),
    ("#### 1,08", None, "08"),
    ("#### 1.2.3", None, "3"),
    ("#### -7", "-7", "-7"),
    ("#### - 7", "-7", "-7"),
    ("#### \u22127", "-7", "-7"),
    ("#### \u20137", "-7", "-7"),
    ("#### -$7", "-7", "-7"),
    ("#### $-7", "-7", "-7"),
    ("#### - $7", "-7", "-7"),
    ("#### +7", "7", "7"),
    ("#### .5", ".5", ".5"),
    ("#### 3/4", "3/4", "3/4"),
    ("#### 3/0", None, None),
    ("#### 1e3", "1e3", "1e3"),
    ("#### 18%", "18", "18"),
    ("#### 18 dollars, not 20", "18", "20"),
    ("#### 18\n\nQuestion: how many are 2 of 3?", "18", "3"),
    ("#### 18 #### 20", "18", "20"),
    ("#### Answer\n#### 18", "18", "18"),
    ("#### 18 < 20", "18", "20"),
    ("#### eighteen", None, None),
    ("####\n18", None, "18"),
    ("The answer is 18", None, "18"),
    ("The answer is $1,080.", None, "1080"),
    ("She has 16 - 3 = <<16-3=13>>13", None, "13"),
    ("16-3", None, "3"),
    ("It is 5\u201310", None, "10"),
    ("so x = - 7.", None, "-7"),
    ("Apples:\n- 7 apples", None, "7"),
    ("(\u22127)", None, "-7"),
    ("\\boxed{18}", None, "18"),
    ("**18**", None, "18"),
    ("18 m\u00b2", None, "18"),
    ("\uff11\uff18", None, "\uff11\uff18"),
    ("18 " + "9" * 5000, None, None),
    ("no number at all", None, None),
    ("", None, None),
]


HARNESS_READS_ELSE = {
    # odd answer -> what flexible-extract of lm-evaluation-harness 0.4.13 (task gsm8k, version 3) finds in it
    "#### 18...": "18..",
    "#### 1\u202f080": "080",
    "#### 1,08": "108",
    "#### 1.2.3": "1.2.3",
    "#### - 7": "7",
    "#### \u22127": "7",
    "#### \u20137": "7",
    "#### - $7": "7",
    "#### 3/4": "4",
    "#### 3/0": "0",
    "#### 1e3": "3",
    "16-3": "-3",
    "so x = - 7.": "7",
    "(\u22127)": "7",
    "\uff11\uff18": None,
    "18 " + "9" * 5000: "9" * 5000,
}


def harness_flexible(answer: str) -> str | None:
    """That rule: the last match, then comma, dollar sign and a last dot removed; compared as a text."""
    found = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", answer)
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", found[-1])) if found else None


def test_flexible_differs_from_the_harness_on_these_odd_answers_alone(shared_data: Path) -> None:
    differing = {odd: harness_flexible(odd) for odd, _, ours in ODD if harness_flexible(odd) != ours}
    assert differing == HARNESS_READS_ELSE
    for row in (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8"):
        answer = json.loads(row)["answer"]
        assert harness_flexible(answer) == flexible(answer)


@pytest.mark.parametrize(("answer", "by_strict", "by_flexible"), ODD, ids=lambda text: ascii(text)[:30])
def test_odd_answers_are_read_as_stated(answer: str, by_strict: str | None, by_flexible: str | None) -> None:
    assert strict(answer) == by_strict
    assert flexible(answer) == by_flexible


def test_every_published_answer_is_right(shared_data: Path) -> None:
    task = GSM8K(str(shared_data / "gsm8k" / "train.jsonl"))
    problems = task.problems()
    golds = [json.loads(line)["answer"] for line in (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8")]
    answers = [Answer(p.uid, 0, (gold,), (True,)) for p, gold in zip(problems, golds, strict=True)]
    scores = task.scores(task.grade(problems, answers))
    assert [(s.metric, s.num_problems, s.value) for s in scores] == [
        ("accuracy/flexible@1", 7473, 1.0),
        ("accuracy/strict@1", 7473, 1.0),
        ("accuracy/flexible@4", 7473, 1.0),
    ]
    # The reference itself against the publisher's own reading: what follows the one "####".
    assert [number(p.reference) for p in problems] == [Fraction(g.split("####")[1].replace(",", "")) for g in golds]


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9),
    st.sampled_from(["", ",", "_"]),
    st.sampled_from(["-", "\u2212"]),
    st.sampled_from(["", "$", "€"]),
)
def test_any_written_form_has_the_number_s_value(value: Decimal, comma: str, minus: str, sign: str) -> None:
    written = f"{abs(value):,}".replace(",", comma if comma != "_" else "\u202f")
    text = f"#### {minus if value < 0 else ''}{sign}{written}"
    for extract in EXTRACTORS.values():
        assert number(extract(text) or "") == Fraction(value)


@given(st.text(alphabet="0123456789.,/-#$ e\u2212=:x\n", max_size=40))
def test_what_is_found_is_a_number(text: str) -> None:
    for extract in EXTRACTORS.values():
        found = extract(text)
        assert found is None or number(found) is not None


def _file(folder: Path, rows: list[object], name: str = "rows.jsonl") -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


ROWS: list[object] = [
    {"question": f"What is {i} and 1,{i:03}?", "answer": f"{i} and 1,{i:03}\n#### 1,{2 * i:03}"} for i in range(4)
]


def test_equal_numbers_are_right_however_written(tmp_path: Path) -> None:
    task = GSM8K(_file(tmp_path, ROWS, "rows.jsonl.gz"), num_problems=2)
    problems = task.problems()
    texts = ["#### 1000.00", "It is $1,003."]
    verdicts = task.grade(problems, [Answer(p.uid, 0, (t,), (True,)) for p, t in zip(problems, texts, strict=True)])
    assert [(v.extractor, v.value) for v in verdicts] == [
        ("flexible@1", 1.0), ("strict@1", 1.0), ("flexible@4", 1.0),
        ("flexible@1", 0.0), ("strict@1", 0.0), ("flexible@4", 0.0),
    ]  # fmt: skip
    assert [v.reason for v in verdicts[3:5]] == ["the reference says 1002", "no number"]
    cut = task.grade(problems, [Answer(problems[0].uid, 0, ("I think",), (False,))])
    assert cut[0].reason == "no number (the answer was cut at max_new_tokens)"


def _scored(texts: list[str], tmp_path: Path) -> dict[str, Score]:
    task = GSM8K(_file(tmp_path, ROWS[:1]), num_samples=len(texts), temperature=0.7)
    problems = task.problems()
    verdicts = task.grade(problems, [Answer(problems[0].uid, i, (t,), (True,)) for i, t in enumerate(texts)])
    return {score.metric: score for score in task.scores(verdicts)}


@pytest.mark.parametrize(
    ("texts", "accuracy", "vote"),
    [
        (["#### 1000", "#### 5", "#### 1,000.0"], 2 / 3, 1.0),
        (["#### 1000", "no idea", "none", "nothing"], 1 / 4, 1.0),  # the invalid do not vote
        (["#### 1000", "#### 5"], 1 / 2, 1.0),  # a tie goes to the first seen
        (["#### 5", "#### 1000"], 1 / 2, 0.0),
        (["#### 5", "#### 5.0", "#### 1000", "x"], 1 / 4, 0.0),
        (["x", "y"], 0.0, 0.0),
    ],
)
def test_majority_vote(texts: list[str], accuracy: float, vote: float, tmp_path: Path) -> None:
    scores = _scored(texts, tmp_path)
    assert scores["accuracy/strict@1"].value == pytest.approx(accuracy)
    assert scores[f"maj@{len(texts)}/strict@1"].value == vote


def test_votes_of_verdicts_in_any_order(tmp_path: Path) -> None:
    task = GSM8K(_file(tmp_path, ROWS[:1]), num_samples=2, temperature=1.0)
    verdicts = [Verdict("a", 1, "strict@1", "5", 0.0), Verdict("a", 0, "strict@1", "1000", 1.0)]
    assert {s.metric: s.value for s in task.scores(verdicts)}["maj@2/strict@1"] == 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "4"}], "record 1: the answer does not end in '#### N'"),
        ([*ROWS, {"query": "a", "response": "#### 4"}], "record 5: a record has the texts question and answer"),
        ([*ROWS, '{"question": "a", "ans'], "record 5: line 5 is not JSON"),
        ([*ROWS, ROWS[0]], "record 5: asks the same question"),
        ([], "0 questions, 1 asked for"),
    ],
)
def test_malformed_files_are_refused(rows: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        GSM8K(_file(tmp_path, rows)).problems()


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        GSM8K(str(tmp_path / "absent.jsonl")).problems()
    with pytest.raises(ValueError, match="4 questions, 5 asked for"):
        GSM8K(_file(tmp_path, ROWS), num_problems=5).problems()
    with pytest.raises(ValueError, match="set a temperature"):
        GSM8K(num_samples=8)
    with pytest.raises(ValueError, match=r"gsm8k\.num_\w+: 0 must be"):
        GSM8K(num_samples=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"So \boxed{1{,}000} apples, all 12 of them", "1000"), (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{\$18.00}", "18.00"), (r"\boxed{1\text{,}234}", "1234"), (r"\boxed{\$1,234}", "1234"),
        (r"\boxed{1,\!234{,\!}567}", "1234567"), (r"\boxed{1\;234}", "1234"), (r"\boxed{12\text{ cm}^2}", "12"),
        (r"\boxed{90^{\circ}}", "90"), (r"\boxed{\text{\$}1,234}", "1234"), (r"\boxed{\textit{7}}", "7"),
        ("#### 5 is a draft\n#### 7 and 3 more", "7"), ("<think>#### 9</think>It is 4", "4"), ("<think>12 or", None),
        ("#### 9</think>#### 3", "3"), ("the answer is \u2212" + "5", "-5"), ("it is 50\\%", "50"),
        (r"= 1\,234", "1234"),
        (r"\boxed{18\text{ dollars}}", "18"), (r"\boxed{x}, that is 4", "4"), ("#### none\nso 6", "6"), ("", None),
        (r"\boxed{\dfrac34}", "3/4"), (r"\boxed{2\frac{1}{2}}", "5/2"), (r"it is -2\frac12", "-5/2"),
        ("2\u00bd", "5/2"),
        ("so 3 1/2 cups", "7/2"), ("5 5/2", "5/2"), (r"3 \times 10^{3}", "3000"), ("10\u00b3", "1000"), ("2^5", "32"),
        ("18 m\u00b2", "18"), ("1_000", "1000"), (r"1.5\frac12", "1/2"), ("on 1/8/2024", "2024"), ("10^-2", "1/100"),
        (r"\boxed{-2.50}", "-2.50"), (r"\boxed{3} or rather \boxed{5}", "5"), (r"\dfrac{1}{2}", "1/2"),
    ],
)  # fmt: skip
def test_the_wider_rule_reads_boxes_latex_and_what_follows_thinking(text: str, found: str | None) -> None:
    assert flexible_4(text) == found


@given(st.integers(-(10**9), 10**9), st.text(alphabet="ab .,\n", max_size=20))
def test_a_boxed_number_is_found_in_any_surroundings(value: int, around: str) -> None:
    latex = f"{value:,}".replace(",", "{,}")
    assert number(flexible_4(f"{around}<think>1 #### 2</think>{around} \\boxed{{{latex}}} {around}") or "x") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>final<|message|>7", "7"),
        ("<|channel>thought\n5<channel|>7", "7"), ("\u25c1think\u25b75\u25c1/think\u25b77", "7"),
        ("<|START_THINKING|>5<|END_THINKING|>7", "7"), ("5<|think:end|>7", "7"), ("<seed:think>5</seed:think>7", "7"),
        ("<|inner_prefix|>5<|inner_suffix|>7", "7"), ("<analysis>5</analysis>7", "7"), ("[THINK]\n5", ""),
        ("I don't</think>It's 7", "It's 7"), ("it ends at `</think>`, so 7", "it ends at `</think>`, so 7"),
        ("<think>it says '</think>', 5</think>7", "7"), ("7 [THINK] 5", "7 [THINK] 5"),
    ],
)  # fmt: skip
def test_thinking_is_cut_in_all_its_marks_and_kept_where_they_are_quoted(text: str, said: str) -> None:
    assert without_thinking(text) == said


@pytest.mark.parametrize(
    ("text", "found"),
    [("7 1{" + " " * 5000, "1"), ("7 <|channel>" * 2000, "7"), ("<think> don't " * 2000 + "7", None)],
    ids=["spaces", "marks", "quotes"],
)
@pytest.mark.timeout(20)  # each took minutes, or never ended
def test_answers_that_repeat_themselves_are_read_in_no_time(text: str, found: str | None) -> None:
    assert flexible_4(text) == found
