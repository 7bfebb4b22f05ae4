"""Drop lists: what is listed leaves training and validation, is counted by reason, and belongs to a run's identity."""

import io
import json
import os
from collections import Counter

import pytest
from fitting import write_config, write_records
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sftlab.cli import parse_objects
from sftlab.data.ability import GeneralData, MathData
from sftlab.data.droplist import ELSEWHERE, NOT_FOUND, Drop, base_uid, read_drops, write_drops
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.plan.table import plan_screen


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def loaded(data, max_length=64):
    data.template, data.max_length = "vicuna_short", max_length
    data.load(lab_tokenizer())
    return data


def chats(folder, num_chats=30, repeats=3):
    """Conversations of one to four exchanges, many of them longer than 64 tokens; the first few are there twice."""
    records = [
        {"id": f"c{i}", "conversations": [
            {"from": who, "value": f"{i} {turn} " + "coins and pens " * 4} for turn in range(i % 4 + 1)
            for who in ("human", "gpt")]}
        for i in range(num_chats)
    ]  # fmt: skip
    path = folder / "chats.json"
    path.write_text(json.dumps(records + [{**r, "id": f"again{i}"} for i, r in enumerate(records[:repeats])]))
    return str(path)


def test_a_listed_conversation_leaves_both_pools_with_all_its_pieces_and_repeats(tmp_path):
    path = chats(tmp_path)
    whole = loaded(GeneralData(path, val_fraction=0.3))
    uids = [uid for uid, _ in whole.conversations()]
    assert any("/1" in uid for uid in whole.examples.uids) and any("#2" in uid for uid in whole.examples.uids)
    listed = {uids[0]: "tag: code", uids[3]: "tag: code", uids[7]: "leak: gsm8k", "0" * 24: "gone"}
    write_drops(tmp_path / "drop.jsonl", [Drop(uid, reason) for uid, reason in listed.items()])
    less = loaded(GeneralData(path, val_fraction=0.3, drop=str(tmp_path / "drop.jsonl")))
    for pool in ("val_pool", "pool"):
        before, after = (getattr(data, pool)(*([5] if pool == "pool" else [])) for data in (whole, less))
        assert after.uids_N.tolist() == [uid for uid in before.uids_N if base_uid(uid) not in listed]
    assert less.num_held_out == len(less.val_pool())
    assert len(whole.pool(5)) + len(whole.val_pool()) > len(less.pool(5)) + len(less.val_pool())
    repeated = Counter(uids)
    counts = less.audit_counts()
    assert counts["dropped: tag: code"] == repeated[uids[0]] + repeated[uids[3]] == 3
    assert counts["dropped: leak: gsm8k"] == repeated[uids[7]]
    assert counts[NOT_FOUND] == 1
    assert [uid for uid, _ in less.conversations()] == [uid for uid in uids if uid not in listed]


@given(st.sets(st.integers(0, 59)), st.sampled_from([1.0, 0.5, 1 / 16]))
@settings(max_examples=25, deadline=None)
def test_what_is_left_keeps_its_rank_so_that_subsets_stay_nested(tmp_path_factory, shared_cache, chosen, fraction):
    os.environ["SFTLAB_CACHE"] = str(shared_cache)
    whole = loaded(MathData(num_examples=60), 256)
    uids = whole.examples.uids
    if len(chosen) == len(uids):
        return
    path = tmp_path_factory.mktemp("drop") / "drop.jsonl"
    write_drops(path, [Drop(uids[i], "x") for i in chosen])
    less = loaded(MathData(num_examples=60, drop=str(path), fraction=fraction), 256)
    ranked = [uid for uid in whole.pool(1).uids_N if uids.index(uid) not in chosen]
    assert less.pool(1).uids_N.tolist() == ranked[: int(fraction * len(ranked))]
    assert less.audit_counts().get("dropped: x", 0) == len(chosen)


def test_conversations_have_the_uids_and_the_text_of_examples(tmp_path):
    for data in (loaded(GeneralData(chats(tmp_path))), loaded(GeneralData(num_examples=80), 256)):
        read = list(data.conversations())
        assert all(talk.uid == uid for uid, talk in read)
        records = [uid for uid in data.examples.uids if "/" not in uid or uid.split("#")[0].endswith("/0")]
        assert [base_uid(uid) for uid in records] == [uid for uid, _ in read]
        by_uid, tokenizer = dict(read), lab_tokenizer()
        for index, uid in enumerate(data.examples.uids):
            trained = tokenizer.decode(data.examples.ids(index)[data.examples.mask(index)].tolist())
            answers = [turn.text for turn in by_uid[base_uid(uid)].turns if turn.role == "assistant"]
            assert all(any(part.strip() in answer for answer in answers) for part in trained.split("</s>"))


def test_another_list_is_another_source_and_none_is_what_it_was(tmp_path):
    uids = [uid for uid, _ in MathData(num_examples=20).conversations()]
    hashes = {loaded(MathData(num_examples=20), 256).content_hash()}
    for number, listed in enumerate((uids[:1], uids[1:2], uids[:2])):
        path = tmp_path / f"{number}.jsonl"
        write_drops(path, [Drop(uid, "a") for uid in listed])
        hashes.add(loaded(MathData(num_examples=20, drop=str(path)), 256).content_hash())
    assert len(hashes) == 4
    write_drops(tmp_path / "same.jsonl", [Drop(uids[1], "b"), Drop(uids[0], "other words")])
    assert loaded(MathData(num_examples=20, drop=str(tmp_path / "same.jsonl")), 256).content_hash() in hashes


def test_one_file_serves_several_abilities_and_says_what_it_did_not_use(tmp_path):
    path = tmp_path / "drop.jsonl"
    uids = [uid for uid, _ in MathData(num_examples=20).conversations()]
    write_drops(path, [Drop(uids[0], "leak", "math"), Drop(uids[1], "leak", "code"), Drop(uids[2], "leak")])
    assert read_drops(path)[1] == Drop(uids[1], "leak", "code")
    counts = loaded(MathData(num_examples=20, drop=str(path)), 256).audit_counts()
    assert counts == {"dropped: leak": 2, ELSEWHERE: 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"uid": "aa", "reason": "x"}\n\n{"uid": "bb"\n', "line 3: not JSON"),
        ('{"uid": "aa"}\n', 'line 1: a line is {"uid"'),
        ('{"uid": "aa", "reason": "x", "abilty": "math"}\n', "line 1: a line is"),
        ('["aa", "x"]\n', "line 1: a line is"),
        ("[" * 100_000 + "]" * 100_000, "line 1: not JSON: lists and dictionaries are nested"),
        (
            '{"uid": "aa", "reason": "x"}\n{"uid": "b", "uid": "c", "reason": "x"}\n',
            "line 2: not JSON: the key 'uid' is",
        ),
        ('{"uid": "\\ud800", "reason": "x"}\n', "line 1: half of a surrogate pair"),
        ("\0\0\0\0", "no text at byte 0"),
        ('{"uid": 7, "reason": "x"}\n', "line 1: an empty value, or one that is not text"),
        ('{"uid": "aa", "reason": " "}\n', "line 1: an empty value"),
        ('{"uid": "aa/0", "reason": "x"}\n', "line 1: aa/0 is an example; give its conversation, aa"),
    ],
)
def test_a_malformed_line_is_told_with_its_file_and_number(tmp_path, text, said):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError) as error:
        loaded(MathData(num_examples=5, drop=str(tmp_path / "bad.jsonl")), 256)
    assert "bad.jsonl" in str(error.value) and said in str(error.value)


def test_ever_new_reasons_are_counted_as_one(tmp_path):
    uids = [uid for uid, _ in MathData(num_examples=150).conversations()]
    write_drops(
        tmp_path / "drop.jsonl", [Drop(uid, f"reason {n // 2 if n < 20 else n}") for n, uid in enumerate(uids[:-1])]
    )
    counts = loaded(MathData(num_examples=150, drop=str(tmp_path / "drop.jsonl")), 256).audit_counts()
    assert counts["dropped: reason 3"] == 2 and counts["dropped: other reasons of the drop list"] == 139 - 100
    assert sum(counts.values()) == 149


def test_a_missing_file_a_list_that_takes_all_and_one_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: there is no such file"):
        loaded(MathData(num_examples=5, drop=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ValueError, match="nothing to leave out"):
        MathData(None, num_examples=5, drop="drop.jsonl")
    write_drops(tmp_path / "all.jsonl", [Drop(uid, "x") for uid, _ in MathData(num_examples=5).conversations()])
    with pytest.raises(ValueError, match=r"no usable example.*dropped: x.*5"):
        loaded(MathData(num_examples=5, drop=str(tmp_path / "all.jsonl")), 256)


def test_the_plan_screen_counts_drops_and_a_resume_on_another_list_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path)
    uids = [uid for uid, _ in MathData(str(tmp_path / "math.jsonl")).conversations()]
    identities = []
    for number in (3, 4):
        write_drops(tmp_path / "drop.jsonl", [Drop(uid, "leak: gsm8k") for uid in uids[:number]])
        given = ["--config", str(write_config(tmp_path)), "--data.abilities.math.drop", "drop.jsonl"]
        objects = parse_objects(given)
        plan = objects.schedule.compile(objects.data, objects.model)
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(plan_screen(plan, objects.data.audits()))
        row = next(line for line in console.export_text().splitlines() if "leak: gsm8k" in line)
        assert row.split() == ["math", "dropped:", "leak:", "gsm8k", str(number)]
        identities.append(objects.data.identity())
    # What a checkpoint holds and a resumed run must have too; see tests of schedules.
    assert {key for key in identities[0] if identities[0][key] != identities[1][key]} == {"data of math"}
