"""The uids of many examples as bytes, 32 to 40 each, where strings would take 90; and their order by a hash.

    stores    [ab12.. 77f0.. 9c3e..] [e001.. 42aa..]      arrays of bytes, shared by all that choose from them
    place_N   4 0 2                                       stands for 42aa.. ab12.. 9c3e..

A string is created only when a uid is requested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np

_CHUNK = 1 << 16  # uids converted to strings, or hashed, at once


class Uids(Sequence[str]):
    """Uids in some order; selecting from them copies no uid.

    Args:
        stores: Arrays of bytes (dtype ``S``), UTF-8.
        place_N: Positions in the concatenated stores; by default all, in order.
    """

    def __init__(self, stores: Sequence[np.ndarray], place_N: np.ndarray | None = None) -> None:
        self._stores = tuple(stores)
        self._starts = np.cumsum([0, *map(len, stores)])
        self._place_N = place_N  # None means 0, 1, 2 ..., which needs no memory

    @classmethod
    def of(cls, uids: Iterable[str]) -> Uids:
        """Build from strings; ``Uids`` are returned unchanged."""
        if isinstance(uids, Uids):
            return uids
        rest = iter(uids)
        chunks = iter(lambda: [uid.encode() for uid in islice(rest, _CHUNK)], [])
        return cls([np.array(chunk, dtype=bytes) for chunk in chunks])

    @classmethod
    def joined(cls, parts: Sequence[Uids]) -> Uids:
        """Concatenate several."""
        stores = [store for part in parts for store in part._stores]
        offsets = np.cumsum([0, *(part._starts[-1] for part in parts)])
        kind = index_type(int(offsets[-1]))
        place_N, start = np.empty(sum(map(len, parts)), dtype=kind), 0
        for part, offset in zip(parts, offsets.tolist(), strict=False):
            end = start + len(part)
            np.add(part._places(0, len(part)), offset, out=place_N[start:end], casting="same_kind")
            start = end
        return cls(stores, place_N)

    def __len__(self) -> int:
        """Return their number."""
        return int(self._starts[-1]) if self._place_N is None else len(self._place_N)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Uids: ...

    def __getitem__(self, index: Any) -> str | Uids:
        """Return one uid as a string, or several by a slice or an index array."""
        if isinstance(index, (slice, np.ndarray)):
            return Uids(self._stores, self._chosen(index))
        place = range(len(self))[index]
        return str(self._bytes(self._places(place, place + 1))[0].decode())

    def __iter__(self) -> Iterator[str]:
        """Yield strings."""
        for names in self.chunks():
            yield from map(bytes.decode, names)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same uids in the same order."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def tolist(self) -> list[str]:
        """Return all as strings."""
        return list(self)

    def chunks(self) -> Iterator[list[bytes]]:
        """Yield all as lists of bytes, in chunks that need little memory."""
        for start in range(0, len(self), _CHUNK):
            yield self._bytes(self._places(start, start + _CHUNK)).tolist()

    def add_to(self, digest: Any) -> None:
        """Hash all, joined by line ends."""
        for number, names in enumerate(self.chunks()):
            digest.update(b"\n" * bool(number) + b"\n".join(names))

    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all as Arrow's text buffers: offsets (int32) and bytes."""
        names_N = self._bytes(self._places(0, len(self)))
        names_NB = names_N.view(np.uint8).reshape(len(names_N), names_N.dtype.itemsize)
        filled_NB = names_NB != 0  # padding of short ones
        starts_N1 = np.concatenate([[0], np.cumsum(filled_NB.sum(axis=1))]).astype(np.int32)
        return starts_N1, names_NB[filled_NB]

    def order_by_hash(self, key: bytes) -> np.ndarray:
        """Return the order [N] of their keyed 16-byte blake2b hashes; equal uids keep their order."""
        keyed = hashlib.blake2b(digest_size=16, key=key)
        head_N, start = np.empty(len(self), dtype=np.uint64), 0  # the first half of each hash

        def hashed(name: bytes) -> bytes:
            digest = keyed.copy()
            digest.update(name)
            return digest.digest()

        def halves(names: list[bytes]) -> np.ndarray:
            return np.frombuffer(b"".join(map(hashed, names)), ">u8").reshape(-1, 2)

        for names in self.chunks():
            head_N[start : start + len(names)] = halves(names)[:, 0]
            start += len(names)
        return _order(head_N, lambda tied: halves(self._bytes(self._chosen(tied)).tolist())[:, 1])

    def _places(self, start: int, end: int) -> np.ndarray:
        """Return the positions in the stores from ``start`` to ``end``."""
        if self._place_N is not None:
            return self._place_N[start:end]
        size = len(self)
        return np.arange(start, min(end, size), dtype=index_type(size))

    def _chosen(self, index: slice | np.ndarray) -> np.ndarray:
        if self._place_N is not None:
            return self._place_N[index]
        if isinstance(index, np.ndarray) and index.dtype == index_type(len(self)) and index.min(initial=0) >= 0:
            return index
        return self._places(0, len(self))[index]

    def _bytes(self, place_M: np.ndarray) -> np.ndarray:
        if len(self._stores) == 1:
            return self._stores[0][place_M]
        width = max((store.dtype.itemsize for store in self._stores), default=1)
        store_M = np.searchsorted(self._starts, place_M, side="right") - 1
        names_M = np.empty(len(place_M), dtype=f"S{width}")
        for number in np.unique(store_M):
            mine = store_M == number
            names_M[mine] = self._stores[number][place_M[mine] - self._starts[number]]
        return names_M


def index_type(size: int) -> type[np.signedinteger]:
    """Return the smallest of int32 and int64 that can index a size."""
    return np.int32 if size < 2**31 else np.int64


def digest_order(digest_NB: np.ndarray, index_M: np.ndarray | None = None) -> np.ndarray:
    """Return the stable order of 16-byte hashes, compared as bytes: of all, or of those of ``index_M``."""
    halves_N2 = np.ascontiguousarray(digest_NB).view(">u8")
    head_N, tail_N = halves_N2.T if index_M is None else (halves_N2[index_M, 0], halves_N2[:, 1])
    return _order(head_N.astype(np.uint64), lambda tied: tail_N[tied if index_M is None else index_M[tied]])


def _order(head_N: np.ndarray, tails: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the stable order of two-part numbers; ``tails`` returns the second parts of some."""
    order_N = np.argsort(head_N, kind="stable").astype(index_type(len(head_N)))
    equal = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(order_N), _CHUNK):
        sorted_M = head_N[order_N[first : first + _CHUNK + 1]]
        equal.append(first + np.flatnonzero(sorted_M[1:] == sorted_M[:-1]))
    for start, end in _runs(np.concatenate(equal)):  # rarely needed: except for equal uids, the first half differs
        tied = order_N[start:end]
        order_N[start:end] = tied[np.argsort(tails(tied).astype(np.uint64), kind="stable")]
    return order_N


def _runs(equal_M: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return the spans [start, end) of positions of which each equals the next, from those positions."""
    breaks = np.flatnonzero(np.diff(equal_M) > 1) + 1
    for run in np.split(equal_M, breaks):
        if len(run):
            yield int(run[0]), int(run[-1]) + 2
