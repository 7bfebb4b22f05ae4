"""Data sets of the Hugging Face hub: named, resolved to a commit, read from a download or as a stream.

Both ways give the same rows in the same order; a stream refuses some sets whose files differ in their columns. It needs
a network and no disk: it is read once, a block of rows at a time (of a file that is one JSON list, the file), and every
further reading of the source asks the hub again. Cut connections are tried again as ``datasets`` does it; one that
stays cut ends the reading, whatever came before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftlab.data.columns import arrow_rows
from sftlab.data.stream import HUB, one_line

if TYPE_CHECKING:
    import pyarrow as pa

HUB_ID = re.compile(r"(?P<id>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[^:\s]+))?(:(?P<config>[^:/]*)(:(?P<split>.*))?)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_OF = re.compile(r"(?P<name>[^\[\]+]+)\[(?P<start>\d*):(?P<stop>\d*)\]")
_QUERY = re.compile(r"\?[^\s'\"]*")  # in an address where the hub signs temporary access
_ROWS = 1024  # rows per block


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub at one commit, so that what is hashed is also what is read, even if the hub moves on.

    Attributes:
        path: As the user wrote it.
        name: ``owner/name``.
        commit: Its commit.
        pinned: The path that names the commit.
    """

    path: str
    name: str
    commit: str
    pinned: str
    _split: str = field(repr=False)
    _builder: Any = field(repr=False)

    @property
    def key(self) -> list[str]:
        """Return what determines the rows."""
        return [self.commit, str(self._builder.config.name), self._split]

    def rows(self, streaming: bool = False) -> Iterator[Any]:
        """Yield the rows in Arrow's form: pictures and sounds are not decoded.

        Args:
            streaming: Read them from the hub, without a download.

        Raises:
            ValueError: The hub cannot be reached, or what it gives cannot be read or is not whole.
        """
        tables = self._streamed() if streaming else self._downloaded()
        num_read = 0
        while True:
            try:
                table = next(tables, None)
            except Exception as error:
                after = f" after row {num_read:,}" if num_read else ""
                hint = "; without streaming it is downloaded first" if streaming else ""
                told = f"{self.path}: could not be loaded from the hub{after}: {_words(error)}{hint}"
                raise ValueError(told) from None
            if table is None:
                return
            yield from arrow_rows(self.path, table)
            num_read += len(table)

    def _downloaded(self) -> Iterator[pa.Table]:
        self._builder.download_and_prepare()
        yield from self._builder.as_dataset(self._split).with_format("arrow").iter(_ROWS)

    def _streamed(self) -> Iterator[pa.Table]:
        from datasets.table import table_cast

        sliced = _ROWS_OF.fullmatch(self._split)
        if "[" in self._split and sliced is None:
            raise ValueError(f"the split {self._split!r} cannot be streamed; a part of one is written train[100:200]")
        name = sliced["name"] if sliced else self._split
        start, stop = (int(sliced["start"] or 0), int(sliced["stop"] or -1)) if sliced else (0, -1)
        schema, num_read = None, 0
        at_once = min(_ROWS, stop) if stop > 0 else _ROWS
        for table in self._builder.as_streaming_dataset(name).with_format("arrow").iter(at_once):
            schema = table.schema if schema is None else schema  # of later files too, as in a download
            first, num_read = num_read, num_read + len(table)
            part = table.slice(max(0, start - first), None if stop < 0 else max(0, stop - max(first, start)))
            if len(part):
                yield table_cast(part, schema)
            if 0 <= stop <= num_read:
                return
        told = self._builder.info.splits
        if told and name in told and told[name].num_examples not in (0, num_read):
            raise ValueError(f"{name} has {told[name].num_examples:,} rows by its card, {num_read:,} were read")


@functools.lru_cache(maxsize=8)
def hub_set(path: str) -> HubSet:
    """Find a data set of the hub and its commit: the newest, or that of the requested revision.

    Without a network, one that is in the local cache of ``datasets``.

    Raises:
        ValueError: It is not there, or nothing tells its commit.
    """
    import datasets

    asked = HUB_ID.fullmatch(path.removeprefix(HUB))
    if asked is None:
        raise ValueError(f"{path}: a hub id is written {HUB}<owner>/<name>[@<revision>][:<config>[:<split>]]")
    name, wanted, config, split = asked["id"], asked["revision"], asked["config"] or None, asked["split"] or "train"
    if Path(name).exists():
        raise ValueError(f"{path}: there is a folder {name} here, which would be read in place of the hub")
    try:
        commit = _commit(name, wanted)
        builder = datasets.load_dataset_builder(name, config, revision=commit or wanted)
    except Exception as error:
        raise ValueError(f"{path}: could not be loaded from the hub: {_words(error)}") from None
    found = commit or str(builder.hash)
    if not _COMMIT.fullmatch(found):
        raise ValueError(
            f"{path}: the hub tells no commit of it, so that nothing says what is read; download its files"
        )
    if commit is None and wanted not in (None, found):
        raise ValueError(
            f"{path}: the hub cannot be reached, and the local cache holds {found} of it; nothing says that this is "
            f"{wanted}. Write {HUB}{name}@{found} to use it"
        )
    rest = path.removeprefix(HUB)[asked.end("revision") if wanted else asked.end("id") :]
    return HubSet(path, name, found, f"{HUB}{name}@{found}{rest}", split, builder)


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit that a revision names now; None if the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=100.0).sha
    except (OfflineModeIsEnabled, httpx.TransportError):
        return None


def _words(error: Exception) -> str:
    offline = "; without a network, a data set must be in the local cache" if "ffline" in repr(error) else ""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{kind}{one_line(Exception(_QUERY.sub('', str(error))))}{offline}"
