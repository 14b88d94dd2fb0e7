"""Writes documents into a datastore from one thread, behind a bounded queue.

Keeps the order that makes a kill harmless (see catalog.py) and pays for its barriers once for
many documents. Only transient errors are retried; any other ends the run at the next call.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import tenacity

from knnlm_store.backend import VectorBackend
from knnlm_store.catalog import Catalog, DocumentRecord, Version
from knnlm_store.errors import KnnlmError
from knnlm_store.values import Entries, Float32, Int64

_BATCH = 2048  # entries a write, unless the queue runs dry
_GROUP_SECONDS = 5.0  # documents that finish within this time share their barriers
_DEPTH = 8  # forward passes that may wait to be written


@dataclass(frozen=True, slots=True)
class _Record:
    document: DocumentRecord


@dataclass(frozen=True, slots=True)
class _Write:
    entries: Entries


@dataclass(frozen=True, slots=True)
class _Done:
    document: DocumentRecord


class DocumentWriter:
    """Use as a context manager; leaving it normally commits what is done.

    Leaving it by an exception commits nothing more; the next run's `Catalog.recover` cleans up.
    """

    def __init__(
        self, backend: VectorBackend, catalog: Catalog, give_up_after: float = 120.0
    ) -> None:
        self._backend, self._catalog = backend, catalog
        self._queue: queue.Queue[_Record | _Write | _Done | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._abort = threading.Event()
        self._pending: list[Entries] = []
        self._finished: list[DocumentRecord] = []
        self._committed_at = time.monotonic()
        self._retry = tenacity.Retrying(
            stop=tenacity.stop_after_delay(give_up_after)
            | tenacity.stop_when_event_set(self._abort),
            sleep=tenacity.sleep_using_event(self._abort),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, KnnlmError) and error.retryable
            ),
            reraise=True,
        )
        self._thread = threading.Thread(target=self._run, name="knnlm-writer", daemon=True)

    def record(self, document: DocumentRecord) -> None:
        """Put a document's record: its intent, before its entries, or new metadata."""
        self._put(_Record(document))

    def write(self, version: Version, first: int, keys: Float32, tokens: Int64) -> None:
        """Write entries at positions first..first + n - 1: keys `[n, d]`, tokens `[n]`."""
        positions = np.arange(first, first + len(tokens), dtype=np.int64)
        documents = np.full(len(tokens), version.number, dtype=np.int64)
        self._put(_Write(Entries(keys, tokens, documents, positions)))

    def done(self, document: DocumentRecord) -> None:
        """Commit a document, all of whose entries were given to `write`."""
        self._put(_Done(document))

    def __enter__(self) -> Self:
        """Start the thread."""
        self._catalog.begin_writing()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait for the thread; raise what it met."""
        if kind is not None:
            self._abort.set()
        self._put(None)
        self._thread.join()
        self._catalog.end_writing()
        if self._error is not None and kind is None:
            raise self._error

    def _put(self, item: _Record | _Write | _Done | None) -> None:
        # the thread goes on emptying the queue after an error, so this cannot block for good
        self._queue.put(item)
        if self._error is not None and item is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._guard(self._handle, item)
        self._guard(self._commit)

    def _guard(self, step: Callable[..., None], *args: Any) -> None:
        if self._error is None and not self._abort.is_set():
            try:
                step(*args)
            except BaseException as error:  # noqa: BLE001  carried to the thread that waits
                self._error = error

    def _handle(self, item: _Record | _Write | _Done) -> None:
        if isinstance(item, _Record):
            self._retry(self._catalog.put, [item.document])
        elif isinstance(item, _Write):
            self._pending.append(item.entries)
            if sum(map(len, self._pending)) >= _BATCH or self._queue.empty():
                self._write_pending()
        else:
            self._finished.append(item.document)
            if time.monotonic() - self._committed_at > _GROUP_SECONDS:
                self._commit()

    def _write_pending(self) -> None:
        if self._pending:
            entries, self._pending = Entries.concatenate(self._pending), []
            self._retry(self._backend.upsert, entries)

    def _commit(self) -> None:
        self._write_pending()
        self._retry(self._backend.flush)
        self._retry(self._catalog.commit, self._finished)
        self._finished = []
        self._committed_at = time.monotonic()
