"""What was done to a datastore: one record a run, with counts and without names.

No document's id, source or metadata stands here, so that a forgotten one is named nowhere; what
became of a document stands in its own record, and goes with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from uuid import uuid4

from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreCorrupt
from knnlm_store.retry import retrying

PREFIX = "history/"
KEPT = 500
"""Runs that are remembered; the oldest go."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: when it ended (seconds since the epoch), what it was, and what it came to.

    counts: of documents and entries, only those above 0.
    """

    at: float
    what: str
    seconds: float
    counts: Mapping[str, int]


def note(backend: VectorBackend, what: str, seconds: float, **counts: int) -> None:
    """Remember a run, unless it changed nothing."""
    above = {name: count for name, count in counts.items() if count}
    if above:
        retrying()(_put, backend, Run(time.time(), what, round(seconds, 3), above))


def runs(backend: VectorBackend) -> list[Run]:
    """Read the runs, oldest first. Raises StoreCorrupt."""
    return [run for _, run in sorted(_scan(backend), key=lambda named: named[0])]


def _put(backend: VectorBackend, run: Run) -> None:
    before = sorted(name for name, _ in backend.scan_records(PREFIX))
    name = f"{PREFIX}{round(run.at * 1e6):020d}-{uuid4().hex[:8]}"
    backend.put_records({name: json.dumps(asdict(run)).encode()})
    if len(before) >= KEPT:
        backend.delete_records(before[: len(before) + 1 - KEPT])


def _scan(backend: VectorBackend) -> Iterator[tuple[str, Run]]:
    for name, value in backend.scan_records(PREFIX):
        try:
            yield name, Run(**json.loads(value))
        except (TypeError, ValueError) as error:
            raise StoreCorrupt(f"The record {name!r} cannot be read.") from error
