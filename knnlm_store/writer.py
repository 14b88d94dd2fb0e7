"""Writes documents into a datastore from one thread, behind a bounded queue.

Keeps the order that makes a kill harmless (see catalog.py) and pays for its barriers once for
many documents. Only transient errors are retried; any other ends the run at the next call.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from knnlm_store.backend import VectorBackend
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change, Version
from knnlm_store.retry import retrying
from knnlm_store.values import Entries, Float32, Int64
from knnlm_store.writers import RENEW

_BATCH = 32 * 1024 * 1024  # bytes of keys a write, unless the queue runs dry
_GROUP_SECONDS = 5.0  # documents that finish within this time share their barriers
_DEPTH = 8  # forward passes that may wait to be written


@dataclass(frozen=True, slots=True)
class _Begin:
    change: Change


@dataclass(frozen=True, slots=True)
class _Write:
    entries: Entries


@dataclass(frozen=True, slots=True)
class _Done:
    change: Change


_Item: TypeAlias = _Begin | _Write | _Done


class DocumentWriter:
    """Use as a context manager; leaving it normally commits what is done.

    Leaving it by an exception commits nothing more; the next run's `Catalog.recover` cleans up.
    refused: ids of documents that another writer kept; nothing of them was written.
    """

    def __init__(
        self, backend: VectorBackend, catalog: Catalog, give_up_after: float | None = None
    ) -> None:
        self._backend, self._catalog = backend, catalog
        self.refused: set[str] = set()
        self._queue: queue.Queue[_Item | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._abort = threading.Event()
        self._begun: list[Change] = []
        self._pending: list[Entries] = []
        self._finished: list[Change] = []
        self._refused_numbers: set[int] = set()
        self._committed_at = self._renewed_at = time.monotonic()
        self._retry = retrying(give_up_after, self._abort)
        self._thread = threading.Thread(target=self._run, name="knnlm-writer", daemon=True)

    def begin(self, change: Change) -> None:
        """Announce a change, before its entries."""
        self._put(_Begin(change))

    def write(self, version: Version, first: int, keys: Float32, tokens: Int64) -> None:
        """Write entries at positions first..first + n - 1: keys `[n, d]`, tokens `[n]`."""
        positions = np.arange(first, first + len(tokens), dtype=np.int64)
        documents = np.full(len(tokens), version.number, dtype=np.int64)
        self.put(Entries(keys, tokens, documents, positions))

    def put(self, entries: Entries) -> None:
        """Write entries, at least one, of any documents that were begun."""
        self._put(_Write(entries))

    def done(self, change: Change) -> None:
        """Commit a change, all of whose entries were given to `write`."""
        self._put(_Done(change))

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

    def _put(self, item: _Item | None) -> None:
        # the thread goes on emptying the queue after an error, so this cannot block for good
        self._queue.put(item)
        if self._error is not None and item is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._guard(self._handle, item)
        self._guard(self._commit)

    def _next(self) -> _Item | None:
        """Wait for an item, and meanwhile keep what is claimed from counting as abandoned."""
        while True:
            self._guard(self._retry, self._renew)
            idle = self._error is not None or self._abort.is_set()
            wait = RENEW if idle else self._renewed_at + RENEW - time.monotonic()
            with suppress(queue.Empty):
                return self._queue.get(timeout=max(0.001, wait))

    def _renew(self) -> None:
        """Renew the claims, if it is time."""
        if time.monotonic() - self._renewed_at >= RENEW:
            self._catalog.renew()
            self._renewed_at = time.monotonic()

    def _upsert(self, entries: Entries) -> None:
        """Write; after an outage that outlasted a lease, only if the claims still stand."""
        self._renew()
        self._backend.upsert(entries)

    def _guard(self, step: Callable[..., None], *args: Any) -> None:
        if self._error is None and not self._abort.is_set():
            try:
                step(*args)
            except BaseException as error:  # noqa: BLE001  carried to the thread that waits
                self._error = error

    def _handle(self, item: _Item) -> None:
        if isinstance(item, _Begin):
            self._begun.append(item.change)
        elif isinstance(item, _Write):
            self._pending.append(item.entries)
        else:
            self._finished.append(item.change)
        size = sum(entries.keys.nbytes for entries in self._pending)
        if size >= _BATCH or (size and self._queue.empty()):
            self._write_pending()
        if self._finished and time.monotonic() - self._committed_at > _GROUP_SECONDS:
            self._commit()

    def _write_pending(self) -> None:
        """Claim the documents that were begun, then write what there is of entries."""
        begun, self._begun = self._begun, []
        lost = self._claim(begun, 0.0 if self._finished else None)
        if lost and self._finished:
            # whoever has them may be waiting for what we are done with
            self._write(but=self._refused_numbers | _numbers(lost))
            self._commit_finished(but={change.id for change in lost})
            lost = self._claim(lost, None)
        self.refused |= {change.id for change in lost}
        self._refused_numbers |= _numbers(lost)
        self._write(but=self._refused_numbers)
        self._pending = []

    def _claim(self, changes: list[Change], patience: float | None) -> list[Change]:
        """Claim documents; gives those that other writers keep."""
        lost = self._retry(self._catalog.claim, changes, patience, self._abort.wait)
        return [change for change in changes if change.id in lost]

    def _write(self, but: set[int]) -> None:
        """Write the entries that wait, but for those of some versions, which go on waiting."""
        if self._pending:
            entries = Entries.concatenate(self._pending)
            held_back = np.isin(entries.documents, list(but))
            self._pending = [entries[held_back]]
            self._retry(self._upsert, entries[~held_back])

    def _commit(self) -> None:
        self._write_pending()
        self._commit_finished()

    def _commit_finished(self, but: Collection[str] = ()) -> None:
        """Commit what is done, but for some documents, which go on waiting."""
        finished = [c for c in self._finished if c.id not in self.refused and c.id not in but]
        self._finished = [change for change in self._finished if change.id in but]
        if finished:
            self._retry(self._backend.flush)
            self._retry(self._catalog.commit, finished)
            self._retry(self._catalog.release, finished)
        self._committed_at = time.monotonic()


def _numbers(changes: list[Change]) -> set[int]:
    return {change.document.version.number for change in changes}
