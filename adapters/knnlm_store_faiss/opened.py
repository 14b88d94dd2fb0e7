"""An open datastore: its connections, and the newest state as a snapshot.

Two connections, so that a search of one thread need not wait for an upsert of another, and so
that commits of this process are noticed just as those of others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm_store.values import Spec
from knnlm_store_faiss.datafiles import leftovers
from knnlm_store_faiss.failures import absent
from knnlm_store_faiss.folder import identity
from knnlm_store_faiss.ledger import Ledger, State
from knnlm_store_faiss.searcher import Searcher
from knnlm_store_faiss.snapshot import Snapshot


class Opened:
    """The datastore that lay in `folder` when this was made; not one that later takes its place."""

    def __init__(self, folder: Path, *, busy_timeout: float, exact_rows: int) -> None:
        """Open for reading; a connection to write is made when one is needed."""
        self.folder = folder
        self.identity = identity(folder)
        self.lock = threading.RLock()
        """Guards the reading side: reader, snapshot, searcher."""
        self.searcher = Searcher(folder, exact_rows)
        self._busy_timeout = busy_timeout
        self._write_lock = threading.RLock()
        self._writer: Ledger | None = None
        self._snapshot: Snapshot | None = None
        self._version = -1
        self._reader = Ledger(folder, busy_timeout)
        try:
            self.spec: Spec = self._reader.state().spec
        except BaseException:
            self._reader.close()
            raise

    def close(self) -> None:
        """Release connections and files, once running calls are through."""
        with self.lock, self._write_lock:
            self._reader.close()
            if self._writer is not None:
                self._writer.close()
            self._snapshot = None

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """Hold the ledger for reading."""
        with self.lock, self._reader.transaction(write=False):
            yield self._reader

    @contextmanager
    def writing(self) -> Iterator[tuple[Ledger, State]]:
        """Hold the ledger alone among all processes; what the body does is one commit."""
        with self._write_lock:
            ledger = self.writer()
            with ledger.transaction(write=True):
                if identity(self.folder) != self.identity:
                    raise absent(self.folder)
                state = ledger.state()
                for path in leftovers(self.folder, state.generation):
                    path.unlink(missing_ok=True)
                yield ledger, state

    def writer(self) -> Ledger:
        """The connection that writes."""
        with self._write_lock:
            if self._writer is None:
                self._writer = Ledger(self.folder, self._busy_timeout)
            return self._writer

    def snapshot(self) -> Snapshot:
        """The newest committed state."""
        with self.lock:
            version = self._reader.version()
            if self._snapshot is None or version != self._version:
                with self._reader.transaction(write=False):
                    # The transaction also keeps a compaction from removing the files meanwhile.
                    self._snapshot = Snapshot.read(self.folder, self._reader, self._snapshot)
                    self._version = version
            return self._snapshot
