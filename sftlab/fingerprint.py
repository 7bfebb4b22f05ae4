"""Fingerprints: hashes of values, files and the code that a user's class depends on, the same in every process."""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from sftlab.processes import num_cores

_BLOCK = 1 << 25  # bytes hashed per thread
_PARSING = threading.Lock()  # Python 3.11 fails if several threads parse at once (its issue 106905)
_DEEPEST = 12  # depth of nested objects; deeper ones are described by their class only
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_PACKAGE = Path(__file__).resolve().parent


def digest(*parts: Any, size: int = 16) -> str:
    """Return a hash of ``size`` bytes of values, in hex; equal values have equal hashes in every process."""
    return hashlib.blake2b(json.dumps(described(parts), sort_keys=True).encode(), digest_size=size).hexdigest()


def file_hash(path: Path) -> str:
    """Return a hash of a file's bytes, in hex; it is read again only if its size or modification time differ.

    Raises:
        OSError: It cannot be read.
    """
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _file_hash(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def table_hash(path: Path) -> str:
    """Like ``file_hash``, for a large file read at every start: a hash of the hashes of its blocks, on all cores."""
    stat = path.stat()
    return _table_hash(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _table_hash(path: Path, size: int, _changed: int) -> str:
    starts = range(0, size, _BLOCK)
    with ThreadPoolExecutor(max(1, min(num_cores(), len(starts)))) as pool:
        blocks = pool.map(functools.partial(_block_hash, path), starts)
        return hashlib.blake2b(b"".join(blocks), digest_size=16).hexdigest()


def _block_hash(path: Path, start: int) -> bytes:
    digest, buffer = hashlib.blake2b(digest_size=16), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = _BLOCK
        while left and (size := file.readinto(buffer[: min(left, len(buffer))])):
            digest.update(buffer[:size])
            left -= size
    return digest.digest()


class Plain(NamedTuple):
    """A value that is its own description, as returned by ``read_plain``: large ones need not be walked."""

    value: Any


def read_plain(text: str) -> Plain:
    """Parse a JSON text into the form that ``described`` would return."""
    return Plain(json.loads(text, parse_float=lambda digits: _Description().of(float(digits))))


def described(value: Any) -> Any:
    """Describe a value as JSON without memory addresses: 1 equals 1.0, objects are their class and attributes."""
    return _Description().of(value)


class _Description:
    """One description. A repeated object is described once; inside itself, an object is only its class."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._inside: list[int] = []

    def of(self, value: Any) -> Any:
        """Return the description of any value."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, float):
            return int(value) if value.is_integer() else value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, Plain):
            return value.value
        if id(value) in self._inside or len(self._inside) > _DEEPEST:
            return _name(type(value))
        self._inside.append(id(value))
        found = self._compound(value)
        self._inside.pop()
        return found

    def _compound(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return [_name(type(value)), value.name]
        if isinstance(value, re.Pattern):
            return ["pattern", value.pattern, value.flags]
        if isinstance(value, Mapping):
            return {str(key): self.of(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted(json.dumps(self.of(item), sort_keys=True) for item in value)
        if isinstance(value, functools.partial):
            return ["partial", *(self.of(part) for part in (value.func, value.args, value.keywords))]
        if hasattr(value, "tolist"):  # arrays and their numbers
            return self.of(value.tolist())
        if hasattr(value, "__qualname__"):  # classes and functions, with what functions capture
            cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            return [_name(value), self.of(cells)] if cells else _name(value)
        if id(value) not in self._known:
            held = {name: self.of(item) for name, item in sorted(_held(value).items())}
            written = json.dumps(held, sort_keys=True).encode()
            self._known[id(value)] = [_name(type(value)), hashlib.blake2b(written, digest_size=16).hexdigest()]
        return self._known[id(value)]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"


def _held(value: Any) -> dict[str, Any]:
    """Return the attributes of an object; of a dataclass, only its fields."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    slots = {name for cls in type(value).__mro__ for name in (getattr(cls, "__slots__", None) or ())}
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def code_of(thing: Any) -> dict[str, str]:
    """Hash the user code that an object depends on, by module.

    That is the source of the modules of its classes and base classes, of the objects that it holds, and of all modules
    that these import, also inside functions; not of this package, the standard library and installed packages, whose
    versions are recorded elsewhere. Files that a module reads are not covered.
    """
    found: dict[str, str] = {}
    waiting = [module for cls in _classes_in(thing, ()) for module in _own_module(cls)]
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if name not in found and path is not None:
            source = path.read_bytes()
            found[name] = hashlib.blake2b(source, digest_size=16).hexdigest()
            waiting += [other for other in _imported(source, name) if _is_users(_source_file(other))]
    live = [cls for cls in _classes_in(thing, ()) if _source_file(cls.__module__) is None]
    if typed := [part for cls in live if cls.__module__ not in sys.builtin_module_names for part in _typed(cls)]:
        found["typed in"] = digest(typed)
    return found


def _classes_in(value: Any, inside: tuple[int, ...]) -> Iterator[Any]:
    """Return the classes of an object, their bases, and the classes and functions that it holds at any depth."""
    if id(value) in inside or isinstance(value, (str, bytes, int, float, type(None))):
        return
    inside = (*inside, id(value))
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        items = [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)
        for item in items:
            yield from _classes_in(item, inside)
    elif isinstance(value, FunctionType):
        yield value
    else:
        cls = value if isinstance(value, type) else type(value)
        yield from (base for base in cls.__mro__ if base is not object)
        for item in _held(value).values() if cls is not value else ():
            yield from _classes_in(item, inside)


def _own_module(thing: Any) -> list[str]:
    """Return the module of a class or function, unless it is part of Python or of this package."""
    path = _source_file(thing.__module__)
    if path is None or _PACKAGE in path.parents:
        return []
    return [] if _STANDARD in path.parents and not _is_installed(path) else [thing.__module__]


def _is_installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts))


def _is_users(path: Path | None) -> bool:
    return path is not None and not {_PACKAGE, _STANDARD} & set(path.parents) and not _is_installed(path)


@functools.cache
def _source_file(name: str) -> Path | None:
    """Return the source file of a module; None if it has none."""
    try:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None) or (importlib.util.find_spec(name) if module is None else None)
    except (ImportError, AttributeError, ValueError):
        return None
    place = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    path = Path(place).resolve() if place else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _imported(source: bytes, name: str) -> set[str]:
    """Return the modules that a source imports anywhere, and the packages that contain them."""
    module = sys.modules.get(name)
    package = getattr(module, "__package__", None) or name.rpartition(".")[0]
    found: set[str] = set()
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(base, package)
            except ImportError:
                continue
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:n]) for parts in (one.split(".") for one in found) for n in range(1, len(parts) + 1)}


def _typed(thing: Any) -> list[Any]:
    """Return the code of a class or function without a file, as in a notebook, and of what it calls there."""
    seen: dict[int, Any] = {}

    def visit(value: Any, names: Mapping[str, Any]) -> Iterator[Any]:
        if isinstance(value, (classmethod, staticmethod, property)):
            value = value.fget if isinstance(value, property) else value.__func__
        if id(value) in seen or isinstance(value, ModuleType):
            return
        seen[id(value)] = value
        if isinstance(value, FunctionType):
            yield from visit(value.__code__, value.__globals__)
        elif isinstance(value, CodeType):
            yield [value.co_name, value.co_code.hex(), value.co_names]
            for item in (*value.co_consts, *(names[name] for name in value.co_names if name in names)):
                yield from visit(item, names)
        elif isinstance(value, type):
            if _source_file(value.__module__) is None:
                for name, item in sorted(vars(value).items()):
                    if name not in ("__dict__", "__weakref__", "__doc__"):
                        yield name
                        yield from visit(item, names)
        else:
            yield described(value)

    return list(visit(thing, {}))
