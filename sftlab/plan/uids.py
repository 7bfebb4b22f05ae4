"""The uids of many examples as bytes, 32 to 40 each, where a list of texts would take 90; and their order by a hash.

    stores    [ab12.. 77f0.. 9c3e..] [e001.. 42aa..]      arrays of bytes, shared by all that choose from them
    place_N   4 0 2                                       stands for 42aa.. ab12.. 9c3e..

A text is made of one when somebody asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np

_CHUNK = 1 << 16  # uids that are texts, or hashed, at once


class Uids(Sequence[str]):
    """Uids in some order; choosing among them copies none.

    Args:
        stores: Arrays of bytes (dtype ``S``), UTF-8.
        place_N: Which of all that the stores hold, one after another; all in their order by default.
    """

    def __init__(self, stores: Sequence[np.ndarray], place_N: np.ndarray | None = None) -> None:
        self._stores = tuple(stores)
        self._starts = np.cumsum([0, *map(len, stores)])
        size = int(self._starts[-1])
        self._place_N = np.arange(size, dtype=index_type(size)) if place_N is None else place_N

    @classmethod
    def of(cls, uids: Iterable[str]) -> Uids:
        """Of some texts; as they are where they are ``Uids``."""
        if isinstance(uids, Uids):
            return uids
        rest = iter(uids)
        chunks = iter(lambda: [uid.encode() for uid in islice(rest, _CHUNK)], [])
        return cls([np.array(chunk, dtype=bytes) for chunk in chunks])

    @classmethod
    def joined(cls, parts: Sequence[Uids]) -> Uids:
        """Several, one after another."""
        stores = [store for part in parts for store in part._stores]
        offsets = np.cumsum([0, *(part._starts[-1] for part in parts)])
        kind = index_type(int(offsets[-1]))
        places = [(part._place_N + offset).astype(kind) for part, offset in zip(parts, offsets, strict=False)]
        return cls(stores, np.concatenate([np.empty(0, dtype=kind), *places]))

    def __len__(self) -> int:
        """How many."""
        return len(self._place_N)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Uids: ...

    def __getitem__(self, index: Any) -> str | Uids:
        """One as a text, or several in the order of a slice or of an array of numbers."""
        if isinstance(index, (slice, np.ndarray)):
            return Uids(self._stores, self._place_N[index])
        return str(self._bytes(self._place_N[index : index + 1 or None])[0].decode())

    def __iter__(self) -> Iterator[str]:
        """As texts."""
        for names in self.chunks():
            yield from map(bytes.decode, names)

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same in the same order."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def tolist(self) -> list[str]:
        """All as texts."""
        return list(self)

    def chunks(self) -> Iterator[list[bytes]]:
        """All as lists of bytes, so many at once as memory never notices."""
        for start in range(0, len(self), _CHUNK):
            yield self._bytes(self._place_N[start : start + _CHUNK]).tolist()

    def add_to(self, digest: Any) -> None:
        """Hash all, joined by line ends."""
        for number, names in enumerate(self.chunks()):
            digest.update(b"\n" * bool(number) + b"\n".join(names))

    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """All as Arrow holds texts: where each starts and the last one ends (int32), and their bytes."""
        names_N = self._bytes(self._place_N)
        names_NB = names_N.view(np.uint8).reshape(len(names_N), names_N.dtype.itemsize)
        filled_NB = names_NB != 0  # what pads a short one
        starts_N1 = np.concatenate([[0], np.cumsum(filled_NB.sum(axis=1))]).astype(np.int32)
        return starts_N1, names_NB[filled_NB]

    def order_by_hash(self, key: bytes) -> np.ndarray:
        """The order [N] in which blake2b hashes of 16 bytes, with a key, rise; equal uids stay in theirs."""
        keyed = hashlib.blake2b(digest_size=16, key=key)
        digest_NB, start = np.empty((len(self), 16), dtype=np.uint8), 0

        def hashed(name: bytes) -> bytes:
            digest = keyed.copy()
            digest.update(name)
            return digest.digest()

        for names in self.chunks():
            digests = np.frombuffer(b"".join(map(hashed, names)), np.uint8).reshape(-1, 16)
            digest_NB[start : start + len(names)] = digests
            start += len(names)
        return digest_order(digest_NB).astype(index_type(len(self)))

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
    """The smallest of int32 and int64 that counts to a size."""
    return np.int32 if size < 2**31 else np.int64


def digest_order(digest_NB: np.ndarray) -> np.ndarray:
    """The stable order [N] in which hashes of 16 bytes rise, compared as bytes."""
    head_N, tail_N = np.ascontiguousarray(digest_NB).view(">u8").T
    head_N = head_N.astype(np.uint64)
    order_N = np.argsort(head_N, kind="stable")
    sorted_N = head_N[order_N]
    equal_N = np.flatnonzero(sorted_N[1:] == sorted_N[:-1])
    for start, end in _runs(equal_N):  # hardly ever: but for equal uids the first half tells all hashes apart
        tied = order_N[start:end]
        order_N[start:end] = tied[np.argsort(tail_N[tied].astype(np.uint64), kind="stable")]
    return order_N


def _runs(equal_M: np.ndarray) -> Iterator[tuple[int, int]]:
    """The spans [start, end) of positions of which each equals the next, from those positions."""
    breaks = np.flatnonzero(np.diff(equal_M) > 1) + 1
    for run in np.split(equal_M, breaks):
        if len(run):
            yield int(run[0]), int(run[-1]) + 2
