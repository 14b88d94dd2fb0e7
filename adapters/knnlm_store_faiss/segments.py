"""Segments: runs of rows that are consecutive entries of one document.

They say which rows live, and whose they are, so that no row carries a document or a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Entries, Int64


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs in the order of their rows, each array int64 `[s]`.

    starts: first row. counts: rows. documents: document number. positions: position of the
    first row in its document.
    """

    starts: Int64
    counts: Int64
    documents: Int64
    positions: Int64

    @classmethod
    def of_table(cls, table: Int64) -> Segments:
        """Take the columns of an int64 table `[s, 4]`."""
        starts, counts, documents, positions = np.ascontiguousarray(table.T)
        return cls(starts, counts, documents, positions)

    def table(self) -> Int64:
        """Give the columns as a table, int64 `[s, 4]`."""
        return np.stack([self.starts, self.counts, self.documents, self.positions], axis=1)

    def until(self, row: int) -> Segments:
        """The segments that start before `row`."""
        return Segments.of_table(self.table()[: np.searchsorted(self.starts, row)])

    def then(self, later: Segments) -> Segments:
        """These segments and later ones."""
        return Segments.of_table(np.concatenate([self.table(), later.table()]))

    def shifted(self, rows: int) -> Segments:
        """The same runs, `rows` further down the files."""
        return Segments(self.starts + rows, self.counts, self.documents, self.positions)

    def packed(self) -> Segments:
        """The runs as they stand once dead rows between them are gone, neighbouring ones joined."""
        ends = np.cumsum(self.counts)
        starts = ends - self.counts
        joined = np.zeros(len(starts), np.bool_)
        joined[1:] = (self.documents[1:] == self.documents[:-1]) & (
            self.positions[1:] == self.positions[:-1] + self.counts[:-1]
        )
        first = np.flatnonzero(~joined)
        return Segments(
            starts[first],
            np.diff(starts[first], append=ends[-1:]),
            self.documents[first],
            self.positions[first],
        )

    def mask(self, rows: int, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Tell which of the rows 0..rows-1 lie in a segment, or in a `chosen` one (bool `[s]`)."""
        starts = self.starts if chosen is None else self.starts[chosen]
        counts = self.counts if chosen is None else self.counts[chosen]
        edges = np.zeros(rows + 1, np.int8)
        edges[starts] += 1
        edges[starts + counts] -= 1
        inside: NDArray[np.bool_] = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
        return inside

    def rows(self, chosen: NDArray[np.bool_]) -> Int64:
        """Rows of the `chosen` segments (bool `[s]`), int64 `[n]`."""
        starts, counts = self.starts[chosen], self.counts[chosen]
        before = np.cumsum(counts) - counts
        return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))

    def owners(self, rows: Int64) -> tuple[Int64, Int64]:
        """Documents and positions of live rows, any shape."""
        segment = np.searchsorted(self.starts, rows, side="right") - 1
        return self.documents[segment], self.positions[segment] + rows - self.starts[segment]


def runs(entries: Entries) -> tuple[Entries, Segments]:
    """Order entries by document and position, and cut them into runs over rows 0..n-1."""
    documents, positions = entries.documents, entries.positions
    follows = (documents[1:] == documents[:-1]) & (positions[1:] == positions[:-1] + 1)
    if not follows.all():
        entries = entries[np.lexsort((positions, documents))]
        documents, positions = entries.documents, entries.positions
        follows = (documents[1:] == documents[:-1]) & (positions[1:] == positions[:-1] + 1)
    starts = np.concatenate([[0], np.flatnonzero(~follows) + 1]).astype(np.int64)
    counts = np.diff(starts, append=len(entries))
    return entries, Segments(starts, counts, documents[starts], positions[starts])
