"""One committed state of a datastore, as readers hold it: mapped files and segments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import DocumentFilter, Entries, Float32, Int64
from knnlm_store_faiss.datafiles import Codec, DataFile
from knnlm_store_faiss.ledger import Ledger, State
from knnlm_store_faiss.segments import Segments

BLOCK_VALUES = 16 * 1024 * 1024  # of keys decoded at once: 64 MB


class Snapshot:
    """The entries as of one commit; never changes, and outlives a compaction by another process.

    Rows are numbered 0..rows-1 in the order they were written. Dead ones are in no segment.
    """

    def __init__(self, folder: Path, state: State, segments: Segments) -> None:
        """Map the files of `state`; raises StoreCorrupt if they lack committed rows."""
        self.state = state
        self.segments = segments
        self._codec = Codec(state.spec)
        self._keys = DataFile.keys(folder, state.generation, state.spec).map(state.rows)
        self._tokens = DataFile.tokens(folder, state.generation).map(state.rows)

    @classmethod
    def read(cls, folder: Path, ledger: Ledger, earlier: Snapshot | None) -> Snapshot:
        """Read the present state, inside a transaction; what `earlier` knows is not read again."""
        state = ledger.state()
        if (
            earlier is None
            or earlier.state.generation != state.generation
            or earlier.state.removals != state.removals
            or not len(earlier.segments.starts)
        ):
            return cls(folder, state, ledger.segments())
        last = int(earlier.segments.starts[-1])  # may have grown since
        return cls(folder, state, earlier.segments.until(last).then(ledger.segments(last)))

    @cached_property
    def live_count(self) -> int:
        """Number of entries."""
        return int(self.segments.counts.sum())

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Whether each row is an entry, bool `[rows]`."""
        return self.segments.mask(self.state.rows)

    def passing(self, within: DocumentFilter | None) -> tuple[NDArray[np.bool_], int]:
        """Rows that are entries and pass the filter, bool `[rows]`, and their number."""
        if within is None:
            return self.live, self.live_count
        chosen = within.mask(self.segments.documents)
        count = int(self.segments.counts[chosen].sum())
        return self.segments.mask(self.state.rows, chosen), count

    def keys(self, rows: Int64 | slice) -> Float32:
        """Keys of rows: int64 of any shape, or a slice, to float32 `[..., d]`."""
        return self._codec.decode(self._keys[rows])

    def stored(self, rows: Int64) -> NDArray[Any]:
        """Keys of rows int64 `[n]` as they are stored."""
        return self._keys[rows]

    def tokens(self, rows: Int64) -> Int64:
        """Tokens of rows, int64 of any shape."""
        return self._tokens[rows].astype(np.int64)

    def blocks(self, rows: Int64) -> Iterator[tuple[int, Float32, None]]:
        """Yield (index into `rows`, keys float32 `[n, d]`, None) in bounded memory."""
        size = max(1, BLOCK_VALUES // self.state.spec.dimension)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            whole = part[-1] - part[0] + 1 == len(part)  # a slice is read faster
            yield start, self.keys(slice(int(part[0]), int(part[-1]) + 1) if whole else part), None

    def entries(self, rows: Int64, *, with_keys: bool) -> Entries:
        """The entries in rows int64 `[n]`."""
        keys = self.keys(rows) if with_keys else np.empty((len(rows), 0), np.float32)
        return Entries(keys, self.tokens(rows), *self.segments.owners(rows))

    def scan(self, documents: Int64 | None, *, with_keys: bool, size: int) -> Iterator[Entries]:
        """Yield the entries, of these documents only if given, at most `size` at once."""
        if documents is not None:
            rows = self.segments.rows(np.isin(self.segments.documents, documents))
            for start in range(0, len(rows), size):
                yield self.entries(rows[start : start + size], with_keys=with_keys)
            return
        for start in range(0, len(self.live), size):
            rows = np.flatnonzero(self.live[start : start + size]) + start
            if len(rows):
                yield self.entries(rows, with_keys=with_keys)
