"""Workers: what comes out is the same whoever fits; they start only where they pay; none is left, none dies unsaid."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_templates import CHATML, THINKING, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_encoder import build

from sftlab.data import prepare as preparing
from sftlab.data import workers
from sftlab.data.conversation import Conversation, Place, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.fitter import Fitter
from sftlab.data.prepare import BadLimit, prepare
from sftlab.data.template import get_template

# Refuses one word as a bad record, and goes over a bound at another.
PICKY = (
    "{% for m in messages %}{% if 'refused' in m.content %}{{ raise_exception('not that word') }}{% endif %}"
    "{% if 'endless' in m.content %}{{ 'x' * 99999999 }}{% endif %}{% endfor %}" + CHATML
)


def own_encoder(template=PICKY):
    tokenizer = byte_tokenizer(template)
    return Encoder(tokenizer, get_template("tokenizer", tokenizer))


def talk(number, word=""):
    turns = []
    for i in range(1 + number % 5):
        turns += [Turn("user", f"{number} {i} asked <|im_end|> "), Turn("assistant", f"{word} said {i}" * (1 + number))]
    return Conversation(tuple(turns), f"group {number}")


TALKS = [talk(number % 50, "refused" if number % 9 == 4 else "") for number in range(90)]


def give(talks, fails=None):
    def source(audit):
        for number, one in enumerate(talks, start=1):
            if number == fails:
                raise ValueError("cannot be read")
            if number % 3 == 0:
                audit.add("mended: every third", Place(0, number))
            yield Place(0, number), one

    return source


@pytest.fixture
def by_processes(monkeypatch, tmp_path):
    """Two workers from the second chunk on; gives the list of what was started."""
    started, start = [], subprocess.Popen
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "processes"))
    monkeypatch.setattr(preparing, "_CHUNK", 4)
    monkeypatch.setattr(workers, "WINDOW_S", 0.0)
    monkeypatch.setattr(workers, "num_workers", lambda *_: 2)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(start(*a, **b)) or started[-1])
    return started


def test_an_entry_is_the_same_byte_for_byte(by_processes, monkeypatch, tmp_path):
    limit = BadLimit("skip", 0.5, ["a.jsonl"])
    other = prepare(give(TALKS), {"k": 1}, own_encoder(), 300, limit=limit)
    assert len(by_processes) == 2 and all(process.returncode is not None for process in by_processes)
    monkeypatch.undo()
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "threads"))
    one = prepare(give(TALKS), {"k": 1}, own_encoder(), 300, limit=limit)
    assert one.folder.name == other.folder.name and one.folder != other.folder
    for name in ("examples.arrow", "audit.json"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    counts = one.audit.counts
    refused = sum(count for cause, count in counts.items() if "not that word" in cause)
    assert refused == 10 and counts["split: longer than max_length"] and counts["kept: same conversation again"]


@pytest.mark.parametrize(
    ("talks", "fails", "error"),
    [
        ([*TALKS[:60], talk(1, "endless")], None, "builds more than 50,000,000 characters"),
        (TALKS, 85, r"record 5 of a\.jsonl: .*not that word; mend it"),  # it stands before what cannot be read
        (TALKS[:4] + TALKS[5:12], 9, "cannot be read"),
    ],
)
def test_an_error_is_that_of_the_first_record_that_has_one(by_processes, monkeypatch, talks, fails, error):
    limit = BadLimit("skip" if "endless" in talks[-1].turns[1].text else "fail", 0.5, ["a.jsonl"])
    for processes in (True, False):
        if not processes:
            monkeypatch.setattr(workers, "WINDOW_S", float("inf"))
        with pytest.raises(ValueError, match=error):
            prepare(give(talks, fails), {"k": 1}, own_encoder(), 300, limit=limit)


def test_a_worker_that_is_killed_is_told_in_one_message_and_leaves_none(by_processes, capfd):
    def kill(audit):
        for number, one in enumerate(TALKS * 20, start=1):
            if number > 100 and by_processes:
                by_processes[0].kill()
            yield Place(0, number), one

    with pytest.raises(ValueError, match=r"worker process was killed by SIGKILL, as happens when memory is used up"):
        prepare(kill, {"k": 1}, own_encoder(), 300, limit=BadLimit("skip", 0.5))
    assert by_processes and all(process.poll() is not None for process in by_processes)
    assert capfd.readouterr() == ("", "")


def test_a_worker_outlives_neither_its_pipe_nor_ctrl_c_of_its_owner(by_processes):
    fit = Fitter(own_encoder(), 300, "split")
    worker = workers._Worker(pickle.dumps(fit))
    assert worker.ask(pickle.dumps(TALKS[:3])) == fit.fitted(TALKS[:3])
    [process] = by_processes
    assert os.getsid(process.pid) == process.pid  # a terminal's signals do not reach it
    process.send_signal(signal.SIGTERM)
    assert worker.ask(pickle.dumps(TALKS[:3])) == fit.fitted(TALKS[:3])
    process.stdin.close()
    assert process.wait(20) == 0


class Text(str):
    """No other process has this class: the name of its module is made up."""


Text.__module__ = "nowhere_to_be_found"
sys.modules["nowhere_to_be_found"] = sys.modules[__name__]


def test_what_another_process_cannot_know_is_fitted_here(by_processes, capfd):
    talks = [one._replace(turns=(Turn("user", Text("hello")), *one.turns[1:])) for one in TALKS]
    encoder = own_encoder(CHATML)
    found = prepare(give(talks), {"k": 1}, encoder, 300)
    encoder.template.render = lambda *_: None  # no function without a name can be sent
    assert prepare(give(talks), {"k": 2}, encoder, 300).uids == found.uids
    assert len(by_processes) == 2 and capfd.readouterr() == ("", "")


def test_a_python_that_cannot_start_again_prepares_with_threads(by_processes, monkeypatch, capfd):
    limit = BadLimit("skip", 0.5)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = prepare(give(TALKS), {"k": 1}, own_encoder(), 300, limit=limit)
    monkeypatch.setattr(sys, "executable", "/bin/there is none")
    assert prepare(give(TALKS), {"k": 2}, own_encoder(), 300, limit=limit).uids == found.uids
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "metaspace"])
@pytest.mark.parametrize("template", ["vicuna_v1.1", "chatml", "alpaca"])
def test_a_fitter_that_was_sent_fits_alike(kind, template):
    tokenizer = build(kind)
    fit = Fitter(Encoder(tokenizer, get_template(template, tokenizer)), 120, "split", "Be kind.")
    words = ["</s>", "<|im_end|> ", "Übung\U00024b62", "def f(x)"]
    talks = [Conversation(tuple(t._replace(text=t.text + words[i % 4]) for t in talk(i).turns), "") for i in range(20)]
    assert pickle.loads(pickle.dumps(fit)).fitted(talks) == fit.fitted(talks)


def test_a_worker_imports_neither_torch_nor_transformers(tmp_path):
    Path(tmp_path, "fit").write_bytes(pickle.dumps((Fitter(own_encoder(THINKING), 300, "split"), TALKS)))
    code = (
        "import pickle, sys, sftlab.data.workers; fit, talks = pickle.load(open(sys.argv[1], 'rb')); fit.fitted(talks);"
        "print({'torch', 'transformers', 'lightning'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "fit"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_small_inputs_never_start_one(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    start = time.perf_counter()
    prepare(give(TALKS * 2), {"k": 1}, own_encoder(), 300, limit=BadLimit("skip", 0.5))
    assert time.perf_counter() - start < workers.WINDOW_S


SECONDS = st.floats(0.0, 100.0)


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 64))
def test_processes_are_taken_where_they_are_faster_and_no_more_than_can_be_fed(own, python, tokenizer, carried, cores):
    count = workers.num_workers(own, python, tokenizer, carried, cores)
    assert 0 <= count <= cores and (count == 0 or cores > 1)
    threads_s = max(own + python, (own + python + tokenizer) / cores)
    if count:
        assert max(own + carried, (python + tokenizer) / count) < threads_s
    if own + python <= (own + python + tokenizer) / cores:  # all cores are at work
        assert count == 0


def test_a_chat_template_in_jinja_takes_processes_on_two_cores_and_a_template_of_ours_does_not():
    assert workers.num_workers(0.1, 0.8, 0.1, 0.05, cores=2) == 2
    assert workers.num_workers(0.1, 0.1, 0.8, 0.05, cores=2) == 0
    assert 8 < workers.num_workers(0.05, 0.9, 0.1, 0.03, cores=64) < 20
