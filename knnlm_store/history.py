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
from knnlm_store.corpus.values import surrogate
from knnlm_store.errors import StoreCorrupt
from knnlm_store.retry import retrying
from knnlm_store.values import is_count, is_time

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
            run = Run(**json.loads(value))
        except (TypeError, ValueError) as error:
            raise _unreadable(name) from error
        if not _is_sound(run):
            raise _unreadable(name)
        yield name, run


def _is_sound(run: Run) -> bool:
    """Whether all of a run is of its type, and of a size that can be shown."""
    return (
        is_time(run.at)
        and isinstance(run.what, str)
        and is_time(run.seconds)
        and isinstance(run.counts, dict)
        and all(map(is_count, run.counts.values()))
        and not any(map(surrogate, (run.what, *run.counts)))
    )


def _unreadable(name: str) -> StoreCorrupt:
    return StoreCorrupt(f"The record {name!r} cannot be read.")
