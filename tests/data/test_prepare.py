"""Examples: nothing lost in silence, one cache entry for one content, safe against kills and against each other."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sftlab.data import prepare as example
from sftlab.data.conversation import Audit, Conversation, Place, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.prepare import prepare
from sftlab.data.readers import GSM8KReader, PairReader
from sftlab.data.source import FileSource
from sftlab.data.template import Vicuna, get_template
from sftlab.lab.tokenizer import lab_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "examples"


def encoder(template="vicuna_short"):
    return Encoder(lab_tokenizer(), get_template(template, lab_tokenizer()))


def source(talks):
    def give(audit: Audit):
        return ((Place(0, i), Conversation(tuple(turns), "g")) for i, turns in enumerate(talks, start=1))

    return give


EXCHANGE = st.tuples(st.integers(1, 30), st.integers(1, 30))
TALKS = st.lists(st.lists(EXCHANGE, min_size=1, max_size=5), min_size=1, max_size=6)


def talk(lengths, number=0):
    turns = []
    for i, (asked, said) in enumerate(lengths):
        turns += [Turn("user", f"{number} {i}" + " coins" * asked), Turn("assistant", f"{number} {i}" + " pens" * said)]
    return turns


class Uneven(Vicuna):
    """Takes its time, so that threads overtake one another, and cannot write what contains a word of its choice."""

    bad = "never said"

    def rendered(self, turns, tools=""):
        time.sleep(random.Random(turns[0].text).choice([0, 0, 0.01]))
        if any(self.bad in turn.text for turn in turns):
            raise ValueError("cannot be written")
        return super().rendered(turns, tools)


def test_threads_that_overtake_one_another_change_nothing(cache, monkeypatch):
    talks = [talk([(5, 9)] * (1 + i % 4), number=i % 70) for i in range(150)]  # the later ones are there again
    found = []
    for chunk, template in ((1000, get_template("vicuna_short", lab_tokenizer())), (4, uneven())):
        monkeypatch.setattr(example, "_CHUNK", chunk)
        found.append(prepare(source(talks), {"chunk": chunk}, Encoder(lab_tokenizer(), template), 60))
    one, other = found
    assert one.uids == other.uids and one.groups == other.groups and any(uid.endswith("#2") for uid in one.uids)
    assert one.audit.to_dict() == other.audit.to_dict() and one.audit.counts["kept: same conversation again"]
    for i in range(len(one)):
        np.testing.assert_array_equal(one.ids(i), other.ids(i))
        np.testing.assert_array_equal(one.mask(i), other.mask(i))


@pytest.mark.parametrize("where", ["template", "source"])
def test_an_error_in_a_late_chunk_is_told_and_leaves_no_entry(cache, monkeypatch, where):
    monkeypatch.setattr(example, "_CHUNK", 4)
    talks = [talk([(5, 9)], number=i) for i in range(60)]

    def give(audit: Audit):
        for number, turns in enumerate(talks):
            if where == "source" and number == 50:
                raise ValueError("cannot be read")
            yield number, Conversation(tuple(turns), "g")

    template = uneven()
    template.bad = "50 0" if where == "template" else template.bad
    with pytest.raises(ValueError, match=r"cannot be (written|read)"):
        prepare(give, {"bad": where}, Encoder(lab_tokenizer(), template), 60)
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    template.bad = "never said"
    assert len(prepare(source(talks), {"bad": where}, Encoder(lab_tokenizer(), template), 60)) == 60


def test_a_full_disk_leaves_no_thread_that_prepares(cache, monkeypatch):
    def full(_folder, chunks, _audit):
        next(chunks)
        error = OSError(28, "No space left on device")  # it knows this frame, and the frame knows it
        raise error

    monkeypatch.setattr(example, "write_examples", full)
    gc.disable()  # which would find them, in whatever thread it runs
    talks = [talk([(5, 9)], number) for number in range(1000)]
    before = set(threading.enumerate())  # other tests' libraries keep threads of their own
    try:
        with pytest.raises(ValueError, match="the disk is full"):
            prepare(source(talks), {"many": 1}, encoder(), 60)
        left = set(threading.enumerate()) - before
    finally:
        gc.enable()
    assert not left


def uneven():
    return Uneven("vicuna_short", lab_tokenizer(), "")


@given(TALKS, st.sampled_from(["split", "truncate", "drop"]), st.integers(12, 90))
@settings(max_examples=60, deadline=None)
def test_every_answer_is_trained_or_counted_as_lost(tmp_path_factory, lengths, overlong, max_length):
    os.environ["SFTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    talks = [talk(one, number) for number, one in enumerate(lengths)]
    table = prepare(source(talks), {"talks": repr(talks)}, encoder(), max_length, overlong)
    assert (table.lengths_N <= max_length).all() and (table.supervised_N > 0).all()
    counts, tokenizer = table.audit.counts, lab_tokenizer()
    trained = [tokenizer.decode(table.ids(i)[table.mask(i)].tolist()) for i in range(len(table))]
    for i in range(len(table)):
        assert len(table.ids(i)) == len(table.mask(i)) == table.lengths_N[i]
        assert table.mask(i).sum() == table.supervised_N[i]
    whole = sum(text.count("</s>") for text in trained)
    wanted = sum(map(len, lengths))
    if not any("longer" in cause or "within" in cause for cause in counts):
        assert whole == wanted and len(table) == len(talks)
    if overlong == "drop":
        assert len(table) + counts["dropped: longer than max_length"] == len(talks)
        assert not counts["truncated: longer than max_length"]
    if overlong == "split":  # only exchanges that are alone too long lose anything, and each is counted
        lost = counts["truncated: longer than max_length"]
        assert wanted - whole <= lost
        assert [uid.split("/")[0] for uid in table.uids] == sorted(
            (uid.split("/")[0] for uid in table.uids), key=[Conversation(tuple(t), "").uid for t in talks].index
        )


def test_a_split_repeats_the_system_turn_and_keeps_the_order():
    turns = [Turn("system", "Be kind."), *talk([(5, 5)] * 6)]
    table = prepare(source([turns]), {"k": 1}, encoder(), 60, "split")
    texts = [lab_tokenizer().decode(table.ids(i).tolist()) for i in range(len(table))]
    assert len(texts) > 1 and all("Be kind. USER:" in text for text in texts)
    answers = [part.split("</s>")[0].strip()[:3] for text in texts for part in text.split("ASSISTANT:")[1:]]
    assert answers == [f"0 {i}" for i in range(6)]
    assert table.uids == [f"{table.uids[0].split('/')[0]}/{i}" for i in range(len(texts))]


@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_special_tokens_in_texts_stay_text_when_a_conversation_is_split(template):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(lab_tokenizer().backend_tokenizer.to_str()), eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    special = {"chatml": "<|im_end|>", "alpaca": "</s>"}[template]
    turns = [Turn(role, text) for _ in range(12) for role, text in (("user", special), ("assistant", special))]
    encoder = Encoder(tokenizer, get_template(template, tokenizer))
    split = prepare(source([turns]), {"k": template}, encoder, 100)
    whole = prepare(source([turns]), {"k": template}, encoder, 4000)
    number = tokenizer.convert_tokens_to_ids(special)
    counts = [int((table.ids(i) == number).sum()) for table in (split, whole) for i in range(len(table))]
    assert len(split) > 1 and sum(counts[:-1]) == counts[-1] == (24 if template == "chatml" else 12)


def test_equal_conversations_have_uids_of_their_own_whatever_their_order():
    a, b = talk([(2, 2)], 1), talk([(3, 3)], 2)
    one = prepare(source([a, b, a]), {"k": 1}, encoder(), 64)
    two = prepare(source([a, a, b]), {"k": 2}, encoder(), 64)
    assert sorted(one.uids) == sorted(two.uids) and len(set(one.uids)) == 3
    assert one.audit.counts["kept: same conversation again"] == 1


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(n=20):
    return [{"question": f"coins {i}", "answer": f"pens {i}", "also": f"cups {i}"} for i in range(n)]


def prepare_files(paths, reader, encoder, max_length, overlong="split", **options):
    return FileSource(paths, reader, **options).examples("math", encoder, max_length, overlong)


def test_a_second_start_reads_the_cache_and_any_change_makes_a_new_entry(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.jsonl", rows())
    first = prepare_files([path], GSM8KReader(), encoder(), 64)
    monkeypatch.setattr(example, "_build", lambda *_: pytest.fail("built again"))
    again = prepare_files([path], GSM8KReader(), encoder(), 64)
    assert again.uids == first.uids and all(np.array_equal(again.ids(i), first.ids(i)) for i in range(20))
    monkeypatch.undo()
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    entries = {first.folder}
    other = write(tmp_path / "b.jsonl", rows(21))
    for changed in (
        prepare_files([other], GSM8KReader(), encoder(), 64),
        prepare_files([path], PairReader("question", "also"), encoder(), 64),
        prepare_files([path], PairReader("also", "question"), encoder(), 64),
        prepare_files([path], GSM8KReader(), encoder("alpaca"), 64),
        prepare_files([path], GSM8KReader(), encoder(), 65),
        prepare_files([path], GSM8KReader(), encoder(), 64, "drop"),
        prepare_files([path], GSM8KReader(), encoder(), 64, on_bad_record="fail"),
    ):
        assert changed.folder not in entries
        entries.add(changed.folder)
    (tmp_path / "c.jsonl").write_bytes(Path(path).read_bytes())
    assert prepare_files([str(tmp_path / "c.jsonl")], GSM8KReader(), encoder(), 64).folder == first.folder


BUILD = """
import sys, time
from sftlab.data.conversation import Conversation, Turn
from sftlab.data.encoder import Encoder
from sftlab.data.prepare import prepare
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.data.template import Vicuna, get_template

def give(audit):
    print("building", flush=True)
    for i in range(1500):
        time.sleep(float(sys.argv[1]))
        yield i, Conversation((Turn("user", f"coins {i}"), Turn("assistant", f"pens {i}")), "g")

encoder = Encoder(lab_tokenizer(), get_template("vicuna_short", lab_tokenizer()))
table = prepare(give, {"k": "shared"}, encoder, 64)
print(len(table), int(table.lengths_N.sum()), flush=True)
"""


def builder(pause):
    return subprocess.Popen([sys.executable, "-c", BUILD, str(pause)], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_build_at_once_build_once():
    both = [builder(0.001), builder(0.001)]
    outputs = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(output.count("building") for output in outputs) == [0, 1]
    assert outputs[0][-2:] == outputs[1][-2:] and outputs[0][-2] == "1500"


def test_a_build_that_is_killed_leaves_nothing_that_looks_complete(cache):
    process = builder(0.01)
    assert process.stdout.readline().strip() == "building"
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    output, _ = builder(0).communicate(timeout=120)
    assert output.split()[-2] == "1500"


def test_an_unknown_policy_for_long_conversations_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split, truncate, drop"):
        prepare(source([]), {}, encoder(), 64, "cut")
    with pytest.raises(ValueError, match="skip or fail"):
        prepare_files([write(tmp_path / "a.jsonl", rows())], GSM8KReader(), encoder(), 64, on_bad_record="ignore")
