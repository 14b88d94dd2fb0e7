"""The entries of a bundle, cut into files of some size and row groups of some thousand rows."""

from __future__ import annotations

from pathlib import Path

from knnlm_store.bundle.listing import BundleFile
from knnlm_store.bundle.tables import TableFile, columns_of, entries_schema
from knnlm_store.values import Entries, Spec

_SHARD = 128 * 1024 * 1024  # bytes of a file, about
_ROW_GROUP = 4 * 1024 * 1024  # bytes of keys
_ROWS = 8192  # in a row group, at most


class Shards:
    """Writes entries, in the order they are given, into files in a folder."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self._folder = folder
        self._storage = spec.storage
        self._schema = entries_schema(spec.dimension, spec.storage)
        width = 2 if spec.storage == "float16" else 4
        self._rows = max(1, min(_ROWS, _ROW_GROUP // (width * spec.dimension)))
        self._waiting: list[Entries] = []
        self._file: TableFile | None = None
        self._done: list[BundleFile] = []

    def add(self, entries: Entries) -> None:
        """Write entries, or keep them until a row group is full."""
        self._waiting.append(entries)
        if sum(map(len, self._waiting)) < self._rows:
            return
        waiting = Entries.concatenate(self._waiting)
        whole = len(waiting) - len(waiting) % self._rows
        for start in range(0, whole, self._rows):
            self._put(waiting[start : start + self._rows])
        self._waiting = [waiting[whole:]]

    def close(self) -> list[BundleFile]:
        """Finish; gives the files."""
        self.mark()
        return self._done

    def mark(self) -> int:
        """Begin a new file; gives a mark to go `back_to`."""
        rest = [entries for entries in self._waiting if len(entries)]
        if rest:
            self._put(Entries.concatenate(rest))
        self._waiting = []
        self._end()
        return len(self._done)

    def back_to(self, mark: int) -> int:
        """Remove what was written since a mark; gives how many entries those were."""
        self.mark()
        gone, self._done = self._done[mark:], self._done[:mark]
        for file in gone:
            (self._folder / file.name).unlink()
        return sum(file.rows for file in gone)

    def _put(self, entries: Entries) -> None:
        if self._file is None:
            path = self._folder / f"entries-{len(self._done):05}.parquet"
            self._file = TableFile(path, self._schema)
        self._file.write(columns_of(entries, self._storage))
        if self._file.bytes >= _SHARD:
            self._end()

    def _end(self) -> None:
        if self._file is not None:
            self._done.append(self._file.close("entries"))
            self._file = None
