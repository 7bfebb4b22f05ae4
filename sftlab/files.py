"""Atomic writes: files and folders get their names only when they are complete, whatever kills their writer.

    .scores.jsonl.<host>-<process>-<n>.partial    beside its target, so on its disk (never in TMPDIR); each writer has a
          | flush, fsync                          name of its own, so that two never mix
          v
    scores.jsonl                                  renamed, the folder fsynced: a reader sees the old file or the new one

What a killed writer left behind is removed by the next writer of the same name. Also here: checks of names given by
users, JSON lines (whose last line a kill may cut short), and deletion, which never leaves the folders that we own.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

MAX_NAME_BYTES = 100
_HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_COUNT = itertools.count()
_ACTIVE: set[str] = set()  # partials that this process is writing
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "it grew too large"}
_REFUSED = {errno.EROFS: "the file system is read-only", errno.EACCES: "not allowed", errno.EPERM: "not allowed"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. After the block the file replaces ``path``, unless the block raised.

    Raises:
        OSError: The disk is full or read-only, whatever error a library made of that.
    """
    with _partial(path) as partial:
        yield partial
        _publish(partial, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder to fill. After the block it replaces ``path``, unless the block raised.

    Raises:
        OSError: As for ``whole_file``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        publish_folder(partial, path)


def publish_folder(partial: Path, path: Path) -> None:
    """Rename a filled folder to its final name, replacing an older one."""
    for folder, _, names in os.walk(partial):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    """Rename a complete file or folder, atomically if the file system can."""
    _sync(partial)
    try:
        os.rename(partial, path)
    except OSError as error:  # a folder replaces another, or a file, or the other way round
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise
        if not _exchange(partial, path):
            path.rename(partial.with_name(f"{partial.name}.old"))
            os.rename(partial, path)
        _remove(partial)
        _remove(partial.with_name(f"{partial.name}.old"))
    _sync(path.parent)


@contextmanager
def appended(path: Path) -> Iterator[TextIO]:
    """Open a text file to append lines.

    Raises:
        OSError: The disk is full or not writable; the error names the file, which that of a write does not.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        if error.filename is None and (found := disk_error(error, path)):
            raise found from None
        raise


def discard(path: Path) -> None:
    """Remove a file or a folder; a folder is renamed first, so that no partial one ever has its name."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        _remove(path.rename(partial_name(path)))


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_name(path: Path) -> Path:
    """Return a path beside ``path`` that no other writer uses."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_COUNT)}.partial")


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    partial = partial_name(path)
    remove_stale(path.parent, path.name)
    with removed_on_error(partial, path):
        yield partial


@contextmanager
def removed_on_error(partial: Path, path: Path) -> Iterator[None]:
    """Remove a partial file or folder if the block that writes it raises.

    Raises:
        OSError: The cause is a full or read-only disk.
    """
    _ACTIVE.add(partial.name)
    try:
        yield
    except BaseException as error:
        _remove(partial)
        if found := disk_error(error, path):
            raise found from None
        raise
    finally:
        _ACTIVE.discard(partial.name)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove partials of dead writers of this machine in a folder, of one name or of every name."""
    wanted = re.compile(rf"\.{re.escape(name) if name else '.+'}\.{_HOST}-(\d+)-\d+\.partial(\.old)?")
    for path in folder.iterdir() if folder.is_dir() else ():
        match = wanted.fullmatch(path.name)
        if match and path.name not in _ACTIVE and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            _remove(path)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine is running; a zombie is not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # no Linux, or gone just now
        return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk, if the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(number)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; return False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def write_error(folder: Path) -> OSError | None:
    """Return why nothing can be written into a folder, even one that does not exist yet; leave nothing behind."""
    place = folder.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    probe = place / f".sftlab-{uuid.uuid4().hex}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return error
    return None


def disk_error(error: BaseException, path: Path) -> OSError | None:
    """Return an OSError that names ``path`` if a full or read-only disk caused an error while writing; else None."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ValueError):
        number = getattr(seen, "errno", None)
        if number is None and (match := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(seen))):
            number = int(match[1] or match[2])
        if number in (*_FULL, errno.EROFS):
            return OSError(number, os.strerror(number), str(path))
        seen = seen.__cause__ or seen.__context__
    return None


def explain(error: OSError) -> str:
    """Return the message for an operating-system error: which file, what is wrong, what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return f"{where}{_FULL[error.errno]}; what was complete stays as it is. Make room, then go on"
    if error.errno in _REFUSED:
        return f"{where}{_REFUSED[error.errno]} ({error.strerror}); choose a place that can be written and read"
    return f"{where}{error.strerror or error}"


def cache_root() -> Path:
    """Return the folder for files that can be recreated: SFTLAB_CACHE, or ~/.cache/sftlab.

    Raises:
        ValueError: The variable is not set, and the user has no home.
    """
    if named := os.environ.get("SFTLAB_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "sftlab"
    except RuntimeError:  # a container's user without an account
        raise ValueError("cache: you have no home folder: name a folder for it in the variable SFTLAB_CACHE") from None


def checked_name(kind: str, name: object) -> str:
    """Check that a given name is safe as part of a file name.

    Args:
        kind: What the name is for, in the user's terms: ``--run``, ``stage``, ``ability``.
        name: The name.

    Returns:
        The name as a string.

    Raises:
        ValueError: It is empty, too long, or could refer to another folder; says which.
    """
    text = str(name)
    wrong = ""
    if not text.strip() or text in (".", ".."):
        wrong = "names nothing"
    elif "/" in text:
        wrong = "contains '/': give a name, not a path"
    elif text.startswith("-"):
        wrong = "begins with '-', as options do"
    elif not text.isprintable():
        wrong = "holds characters that cannot be seen"
    elif len(text.encode()) > MAX_NAME_BYTES:
        wrong = f"is longer than {MAX_NAME_BYTES} bytes"
    if wrong:
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise ValueError(f"{kind}: {shown!r} {wrong}; choose another name, such as 'math-2'")
    return text


def remove_folder(path: Path, inside: Path) -> None:
    """Delete a folder with its contents, if it exists; links are never followed.

    Raises:
        ValueError: It is not inside the folder ``inside``, or only by way of a link.
    """
    if not path.exists() and not path.is_symlink():
        return
    owner, place = inside.resolve(), path.parent.resolve() / path.name
    if path.is_symlink() or not place.is_relative_to(owner) or place == owner or ".." in path.parts:
        raise ValueError(f"{path} does not lie inside {inside}: it is not deleted")
    shutil.rmtree(place)


def copy_folder(source: Path, target: Path, left_out: Sequence[str] = ()) -> None:
    """Copy the contents of a folder into another, without following links that lead out of it.

    Args:
        source: The folder. In the hub's cache its files are links to ``blobs`` beside ``snapshots``: those are copied.
        target: Created if it does not exist.
        left_out: Patterns of names that are not copied.

    Raises:
        ValueError: A link leads out of the folder.
    """
    owners = [source.resolve()]
    owners += [owners[0].parents[1] / "blobs"] if owners[0].parent.name == "snapshots" else []
    _copy(source, target, left_out, owners)


def _copy(source: Path, target: Path, left_out: Sequence[str], owners: Sequence[Path]) -> None:
    found = sorted(source.iterdir())
    for path in (path for path in found if path.is_symlink()):
        real = path.resolve()
        if path.absolute().is_relative_to(real) or not any(map(real.is_relative_to, owners)):
            raise ValueError(f"{path} is a link to a file elsewhere, which is not copied; put the file itself there")
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in left_out):
            continue
        if path.is_dir():
            _copy(path, target / path.name, left_out, owners)
        else:
            shutil.copyfile(path, target / path.name)  # its mode follows the umask, not the source


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, without a last line that a kill truncated; empty without a file.

    Raises:
        ValueError: A line is not a JSON object; says which.
    """
    return [_object(path, number, line) for number, line in enumerate(_complete_lines(path), 1) if line.strip()]


def jsonl_until(path: Path, step: int) -> str:
    """Return the complete lines of a JSON-lines file whose ``step`` is at most this one (or null), unchanged."""
    lines = _complete_lines(path)
    kept = [line for number, line in enumerate(lines, 1) if _step(path, number, line) <= step]
    return "".join(f"{line}\n" for line in kept)


def cut_jsonl(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after a step, and a truncated last line, from a file; return the objects that remain."""
    if path.is_file():
        write_text(path, jsonl_until(path, step))
    return read_jsonl(path)


def _step(path: Path, number: int, line: str) -> int:
    found = _object(path, number, line).get("step") or 0
    if not isinstance(found, int):
        raise ValueError(f"{path}, line {number}: 'step' is not a number; the file is damaged, delete or restore it")
    return found


def _complete_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return whole.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        line = whole[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; the file is damaged, delete or restore it") from None


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object; the file is damaged, delete or restore it")
    return found
