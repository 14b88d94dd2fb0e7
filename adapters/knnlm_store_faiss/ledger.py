"""The truth about a datastore: a small SQLite file that says which rows count, and whose.

Rollback journal, not WAL: readers then need no permission to write the folder, deleted content
is gone from disk at commit, and a commit costs the same beside the data files' own syncs.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knnlm_store.errors import StoreMismatch
from knnlm_store.values import Int64, Spec
from knnlm_store_faiss.failures import DATABASE, corrupt
from knnlm_store_faiss.segments import Segments

FORMAT = 1

_APPLICATION = 0x4B4E4C4D  # "KNLM"
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    dimension INTEGER NOT NULL,
    storage TEXT NOT NULL,
    generation INTEGER NOT NULL,  -- of the data files
    rows INTEGER NOT NULL,        -- committed, dead ones included
    removals INTEGER NOT NULL,    -- rises whenever a segment shrinks or goes
    indexed INTEGER NOT NULL      -- rows in the saved index; 0: none was built
);
CREATE TABLE segments (
    row_start INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    document INTEGER NOT NULL,
    position INTEGER NOT NULL,
    first_id INTEGER NOT NULL UNIQUE
);
CREATE INDEX segments_by_document ON segments (document);
CREATE TABLE records (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
_SETTINGS = "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;"
_SEGMENT = "SELECT row_start, count, document, position FROM segments"
_RECORDS_A_PAGE = 256


@dataclass(frozen=True, slots=True)
class State:
    """What the ledger says of the datastore as a whole; see the schema."""

    spec: Spec
    generation: int
    rows: int
    removals: int
    indexed: int


class Ledger:
    """One connection to the SQLite file, used by one thread at a time."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """Open the ledger in `folder`; `timeout` in seconds is the wait for another writer."""
        self._path = folder / DATABASE
        self._db = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        try:
            self._check()
            self._db.executescript(_SETTINGS)
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def create(folder: Path, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Write the ledger of an empty datastore of generation 1 into `folder`."""
        db = sqlite3.connect(folder / DATABASE)
        try:
            db.executescript(_SETTINGS + _SCHEMA)
            with db:
                db.execute(
                    "INSERT INTO state VALUES (1, ?, ?, 1, 0, 0, 0)", (spec.dimension, spec.storage)
                )
                db.executemany("INSERT INTO records VALUES (?, ?)", records.items())
        finally:
            db.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def version(self) -> int:
        """A number that changes whenever another connection commits."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Run the body on one state of the ledger; commit at its end, roll back on an error."""
        self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def state(self) -> State:
        """Read the state."""
        row = self._db.execute(
            "SELECT dimension, storage, generation, rows, removals, indexed FROM state"
        ).fetchone()
        if row is None:
            raise corrupt(self._path, "lacks the datastore's state")
        return State(Spec(row[0], row[1]), *row[2:])

    def set_rows(self, generation: int, rows: int) -> None:
        """Set the generation of the data files and the number of rows that count."""
        self._db.execute("UPDATE state SET generation = ?, rows = ?", (generation, rows))

    def set_indexed(self, rows: int) -> None:
        """Set the number of rows in the saved index."""
        self._db.execute("UPDATE state SET indexed = ?", (rows,))

    def vacuum(self) -> None:
        """Rewrite the file without its free pages."""
        self._db.execute("VACUUM")

    # -- segments ------------------------------------------------------------------------------

    def segments(self, start: int = 0) -> Segments:
        """Read the segments whose first row is `start` or later."""
        rows = self._db.execute(f"{_SEGMENT} WHERE row_start >= ? ORDER BY row_start", (start,))
        return Segments.of_table(np.array(rows.fetchall(), np.int64).reshape(-1, 4))

    def remove_ids(self, first: int, last: int) -> None:
        """Take the entries with ids `first` to `last` out of the segments."""
        # Segments share no id, so of those that begin before `first` only the last can reach it.
        touched = self._db.execute(
            f"{_SEGMENT} WHERE first_id <= ? AND first_id >= coalesce("
            "(SELECT max(first_id) FROM segments WHERE first_id <= ?), ?)",
            (last, first, first),
        ).fetchall()
        for start, count, document, position in touched:
            before = min(count, first - document - position)
            after = document + position + count - 1 - last
            if before == count:
                continue
            self._db.execute("DELETE FROM segments WHERE row_start = ?", (start,))
            self._db.execute("UPDATE state SET removals = removals + 1")
            if before > 0:
                self._insert(start, before, document, position)
            if after > 0:
                kept = count - after
                self._insert(start + kept, after, document, position + kept)

    def remove_documents(self, documents: Int64) -> None:
        """Take all entries of these documents out of the segments."""
        gone = self._db.executemany(
            "DELETE FROM segments WHERE document = ?", ((d,) for d in documents.tolist())
        )
        if gone.rowcount:
            self._db.execute("UPDATE state SET removals = removals + 1")

    def add_segments(self, added: Segments) -> None:
        """Add segments behind all others, lengthening one that the first of them continues."""
        table = added.table().tolist()
        last = self._db.execute(f"{_SEGMENT} ORDER BY row_start DESC LIMIT 1").fetchone()
        if last is not None:
            start, count, document, position = last
            if table[0][0::2] == [start + count, document] and table[0][3] == position + count:
                self._db.execute(
                    "UPDATE segments SET count = ? WHERE row_start = ?",
                    (count + table[0][1], start),
                )
                del table[0]
        for row in table:
            self._insert(*row)

    def replace_segments(self, segments: Segments) -> None:
        """Put these segments in the place of all."""
        self._db.execute("DELETE FROM segments")
        self._db.execute("UPDATE state SET removals = removals + 1, indexed = 0")
        for row in segments.table().tolist():
            self._insert(*row)

    def _insert(self, start: int, count: int, document: int, position: int) -> None:
        self._db.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?)",
            (start, count, document, position, document + position),
        )

    # -- records -------------------------------------------------------------------------------

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records."""
        self._db.executemany(
            "INSERT OR REPLACE INTO records VALUES (?, ?)",
            records.items(),
        )

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        found = {}
        for name in names:
            row = self._db.execute("SELECT value FROM records WHERE name = ?", (name,)).fetchone()
            if row is not None:
                found[name] = bytes(row[0])
        return found

    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records."""
        self._db.executemany("DELETE FROM records WHERE name = ?", ((n,) for n in names))

    def page_of_records(self, prefix: str, after: str | None) -> list[tuple[str, bytes]]:
        """Read the next records by name whose name starts with `prefix`; empty at the end."""
        comparison = ">=" if after is None else ">"
        return self._db.execute(
            f"SELECT name, value FROM records WHERE name {comparison} ? AND name < ? "
            "ORDER BY name LIMIT ?",
            (prefix if after is None else after, prefix + chr(sys.maxunicode), _RECORDS_A_PAGE),
        ).fetchall()

    def _check(self) -> None:
        """Refuse a file that is no ledger, or one of a later format."""
        if self._db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise corrupt(self._path, "is not the file of a datastore")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise StoreMismatch(
                f"{self._path} has format {version}; this version reads up to {FORMAT}.",
                field="format",
                hint="Upgrade knnlm-store.",
            )
