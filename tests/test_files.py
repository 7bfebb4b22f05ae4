"""Files and folders under their names are complete, old or new, whatever happens to their writer."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.files import (
    appended,
    cache_root,
    checked_name,
    copy_folder,
    cut_jsonl,
    explain,
    read_jsonl,
    remove_folder,
    whole_file,
    whole_folder,
    write_text,
)


def test_a_file_is_the_old_one_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="broken"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("broken")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_too_and_nothing_of_the_old_one_stays_in_it(tmp_path):
    folder = tmp_path / "made" / "here"
    for name in ("old", "new"):
        with pytest.raises(OSError, match="broken"), whole_folder(folder) as partial:
            (partial / "half").touch()
            raise OSError("broken")
        with whole_folder(folder) as partial:
            (partial / name).touch()
            assert not folder.exists() or [path.name for path in folder.iterdir()] == ["old"]
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(folder.parent.iterdir()) == [folder]


def test_writers_of_one_name_never_mix(tmp_path):
    def write(number: int) -> None:
        for _ in range(20):
            write_text(tmp_path / "a.txt", str(number) * 1000)
            with whole_folder(tmp_path / "folder") as partial:
                for name in "abc":
                    (partial / name).write_text(str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a.txt").exists():
            assert len(set((tmp_path / "a.txt").read_text())) == 1
    assert len({(tmp_path / "folder" / name).read_text() for name in "abc"}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


FOREVER = """
import sys
from pathlib import Path
from sftlab.files import whole_file, whole_folder
for number in range(10**9):
    with whole_file(Path("a.txt")) as partial:
        partial.write_text(str(number) * 50_000)
    with whole_folder(Path("folder")) as partial:
        for name in "abc":
            (partial / name).write_text(str(number) * 10_000)
    print(number, flush=True)
"""


def test_killed_at_any_instant_a_writer_leaves_whole_things_and_the_next_one_tidies_up(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for wait in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", FOREVER], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(wait * 0.007)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert (tmp_path / "a.txt").stat().st_size % 50_000 == 0
        texts = {(tmp_path / "folder" / name).read_text() for name in "abc"}
        assert len(texts) == 1 and len(texts.pop()) % 10_000 == 0
    write_text(tmp_path / "a.txt", "")
    with whole_folder(tmp_path / "folder"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


FULL = """
import resource, signal, sys
from pathlib import Path
from sftlab.files import explain, whole_file, whole_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

def plain(path): path.write_bytes(bytes(10**6))

def torch_save(path):
    import torch
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(10**6)}, file)

def safetensors(path):
    import torch
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(10**6)}, path)

def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    pq.write_table(pa.table({"a": list(range(10**6))}), path)

def arrow(path):
    import pyarrow as pa
    table = pa.table({"a": list(range(10**6))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write(table)

try:
    if sys.argv[2] == "folder":
        with whole_folder(Path("new")) as partial:
            globals()[sys.argv[1]](partial / "inner")
    else:
        with whole_file(Path("new")) as partial:
            globals()[sys.argv[1]](partial)
except OSError as error:
    print(explain(error))
"""


@pytest.mark.parametrize(
    ("writer", "kind"),
    [("plain", "file"), ("torch_save", "file"), ("safetensors", "folder"), ("parquet", "file"), ("arrow", "folder")],
)
def test_a_writer_without_room_leaves_nothing_and_says_one_thing(tmp_path, writer, kind):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, writer, kind], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.startswith("new: it grew too large") and len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError) as raised:
        write_text(tmp_path / "a.txt", "a")
    assert "not allowed" in explain(raised.value)


@given(st.text(max_size=150))
def test_a_checked_name_names_one_file_of_the_folder_and_nothing_else(text):
    try:
        name = checked_name("--run", text)
    except ValueError as error:
        assert str(error).startswith("--run: ") and len(str(error).splitlines()) == 1
        return
    path = Path("/logs") / name
    assert path.parent == Path("/logs") and Path(os.path.normpath(path)).parent == Path("/logs")
    assert name == text and not name.startswith("-") and name.isprintable() and len(os.fsencode(name)) <= 100


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../x", "/", "a\0b", "-x", "a\nb", "\x1b[2J", "é" * 51])
def test_names_that_mean_another_place_are_refused(name):
    with pytest.raises(ValueError, match="stage: "):
        checked_name("stage", name)


def test_usual_names_pass():
    for name in ("math", "a[1]", "k=1_256-seed=3", "Übung 2", "数学", "x" * 100, ".hidden", 7, 0.25):
        assert checked_name("run", name) == str(name)


ROWS = st.lists(st.fixed_dictionaries({"step": st.none() | st.integers(0, 9), "text": st.text(max_size=5)}), max_size=8)


@given(rows=ROWS, torn=st.integers(0, 400), step=st.integers(0, 9))
def test_json_lines_torn_anywhere_keep_their_whole_lines(tmp_path_factory, rows, torn, step):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    whole = "".join(json.dumps(row, ensure_ascii=row["step"] != 1) + "\n" for row in rows if row["text"].isprintable())
    rows = [row for row in rows if row["text"].isprintable()]
    path.write_bytes(whole.encode()[:torn])
    kept = rows[: path.read_bytes().count(b"\n")]
    assert read_jsonl(path) == kept
    kept = [row for row in kept if (row["step"] or 0) <= step]
    assert cut_jsonl(path, step) == kept == read_jsonl(path)
    assert path.read_bytes().count(b"\n") == len(kept)


def test_damage_in_the_middle_of_json_lines_is_told_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    for damage in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        path.write_bytes(b'{"step": 1}\n' + damage + b"\n{}\n")
        with pytest.raises(ValueError, match=r"a\.jsonl, line 2: "):
            read_jsonl(path)
    assert read_jsonl(tmp_path / "none.jsonl") == [] and cut_jsonl(tmp_path / "none.jsonl", 3) == []
    assert not (tmp_path / "none.jsonl").exists()


def test_deleting_stays_inside_and_follows_no_link(tmp_path):
    outside, logs = tmp_path / "outside", tmp_path / "logs"
    for folder in (outside / "deep", logs / "run" / "checkpoints"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("work")
    (logs / "link").symlink_to(outside)
    (logs / "run" / "inner").symlink_to(outside)
    for path in (outside, logs, logs / "link", logs / "link" / "deep", logs / ".." / "outside", logs / "run" / ".."):
        with pytest.raises(ValueError, match="not deleted"):
            remove_folder(path, logs)
    remove_folder(logs / "absent", logs)
    remove_folder(logs / "run", logs)
    assert not (logs / "run").exists() and (outside / "deep" / "file").read_text() == "work"


def test_a_copied_folder_holds_what_is_inside_and_no_file_from_elsewhere(tmp_path):
    (tmp_path / "key").write_text("secret")
    model = tmp_path / "model"
    (model / "inner").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "inner" / "again").symlink_to("../config.json")
    copy_folder(model, tmp_path / "copy", ("nothing*",))
    copied = tmp_path / "copy" / "inner" / "again"
    assert copied.read_text() == "{}" and not copied.is_symlink()
    for link in (model / "notes.txt", model / "inner" / "notes.txt"):
        link.symlink_to(tmp_path / "key")
        with pytest.raises(ValueError, match=r"notes.txt is a link to a file elsewhere"):
            copy_folder(model, tmp_path / link.parent.name)
        link.unlink()
    (model / "folder").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="folder is a link"):
        copy_folder(model, tmp_path / "third")


def test_a_copy_has_the_modes_of_the_umask_and_no_loop_is_followed(tmp_path):
    (tmp_path / "a" / "inner").mkdir(parents=True, mode=0o755)
    (tmp_path / "a" / "inner" / "file").write_text("x")
    (tmp_path / "a" / "inner" / "file").chmod(0o444)
    before = os.umask(0o077)
    try:
        copy_folder(tmp_path / "a", tmp_path / "copy")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "copy" / name).stat().st_mode) for name in ("", "inner", "inner/file")]
    assert modes == [0o700, 0o700, 0o600]
    (tmp_path / "a" / "inner" / "loop").symlink_to("..")
    with pytest.raises(ValueError, match="loop is a link"):
        copy_folder(tmp_path / "a", tmp_path / "third")


def test_of_a_hubs_cache_the_files_behind_the_links_are_copied(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    copy_folder(snapshot, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_text() == "{}"


def test_the_cache_needs_a_home_only_where_no_folder_is_named(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("SFTLAB_CACHE")
    with pytest.raises(ValueError, match="SFTLAB_CACHE"):
        cache_root()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_disk_that_is_full_while_lines_are_added_is_told_with_the_file():
    with pytest.raises(OSError) as caught, appended(Path("/dev/full")) as file:
        file.write("x" * 100_000)
    assert explain(caught.value).startswith("/dev/full: the disk is full")
