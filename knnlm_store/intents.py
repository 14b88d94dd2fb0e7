"""Which writer may change a document: intents, records that say who is at which.

Vendors offer no compare-and-set that all of them share. What they share is that a read sees what
was written before it, and that is enough: a writer puts its intent, then reads all of them, and
may go on only if no rival's is there. Of two that come at once at least one sees the other; the
one with the larger name steps back until the other is through. Writers of the same version are
no rivals: its entries have the same ids, so that both write one copy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

from knnlm_store import writers
from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreCorrupt, StoreError

_PREFIX = "intent/"
PATIENCE = 30.0
_POLL = 0.25

Sleep: TypeAlias = Callable[[float], object]
"""Lets so many seconds pass; gives True if there is no point in waiting on."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A writer's word that it is changing a document.

    number: of the version in question. writes: whether it writes that version's entries. at:
    when the writer last said so, in seconds since the epoch.
    """

    document: str
    number: int
    writes: bool
    writer: str
    at: float

    @property
    def name(self) -> str:
        """Name of its record: no two writers share one."""
        return f"{_PREFIX}{self.writer}/{self.document}"

    @property
    def is_abandoned(self) -> bool:
        """Whether its writer is gone."""
        return writers.is_gone(self.writer, self.at)

    def is_rival_of(self, other: Intent) -> bool:
        """Whether the two may not be at work together."""
        if self.writer == other.writer or self.document != other.document:
            return False
        return self.number != other.number or not (self.writes and other.writes)

    def yields_to(self, other: Intent) -> bool:
        """Whether this one steps back: who writes no entries before who does, then by name."""
        return (not self.writes, self.writer) > (not other.writes, other.writer)


@dataclass(frozen=True, slots=True)
class Claims:
    """What `claim` came to: the documents that are ours, and intents the dead left on those."""

    won: set[str]
    abandoned: list[Intent]


def put(backend: VectorBackend, intents: Iterable[Intent]) -> None:
    """Write intents."""
    records = {i.name: json.dumps(asdict(i), ensure_ascii=False).encode() for i in intents}
    if records:
        backend.put_records(records)


def scan(backend: VectorBackend) -> Iterator[Intent]:
    """Iterate over all intents. Raises StoreCorrupt."""
    for name, value in backend.scan_records(_PREFIX):
        try:
            yield Intent(**json.loads(value))
        except (TypeError, ValueError) as error:
            raise StoreCorrupt(f"The record {name!r} cannot be read.") from error


def remove(backend: VectorBackend, intents: Iterable[Intent]) -> None:
    """Remove intents."""
    names = [intent.name for intent in intents]
    if names:
        backend.delete_records(names)


def require(backend: VectorBackend, intents: Iterable[Intent]) -> None:
    """Raise StoreError if others took us for dead, which they do where LEASE has run out."""
    named = {intent.name: intent for intent in intents}
    found = backend.get_records(list(named)) if named else {}
    gone = [intent for name, intent in named.items() if name not in found]
    if gone:
        with suppress(StoreError):
            put(backend, gone)  # so that the next run removes what was written since
        raise StoreError(
            f"Another process took over {len(gone)} of the documents that were being written.",
            hint="Run the same command again.",
        )


def renew(backend: VectorBackend, intents: Iterable[Intent]) -> None:
    """Tell writers elsewhere that this one is still there. Raises StoreError as `require`."""
    intents = list(intents)
    require(backend, intents)
    put(backend, (replace(intent, at=time.time()) for intent in intents))


def claim(
    backend: VectorBackend,
    wanted: Iterable[Intent],
    patience: float | None = None,
    sleep: Sleep = time.sleep,
) -> Claims:
    """Put intents of one writer, and wait up to `patience` seconds for its rivals to finish.

    Those that were not won are withdrawn.
    """
    posted = {intent.document: intent for intent in wanted}
    if not posted:
        return Claims(set(), [])
    put(backend, posted.values())
    give_up_at = time.monotonic() + (PATIENCE if patience is None else patience)
    waiting, withdrawn, abandoned = dict(posted), dict[str, Intent](), list[Intent]()
    while True:
        others = [intent for intent in scan(backend) if intent.document in waiting]
        dead = {intent.name for intent in others if intent.is_abandoned}
        rivals = _rivals(waiting, (intent for intent in others if intent.name not in dead))
        won = waiting.keys() - rivals.keys() - withdrawn.keys()
        abandoned += [i for i in others if i.name in dead and i.document in won]
        waiting = {d: i for d, i in waiting.items() if d not in won}
        if not waiting or time.monotonic() >= give_up_at:
            remove(backend, (i for d, i in waiting.items() if d not in withdrawn))
            return Claims(posted.keys() - waiting.keys(), abandoned)
        _step_back(backend, waiting, withdrawn, rivals)
        if rivals and sleep(_POLL):
            give_up_at = 0.0


def _rivals(mine: dict[str, Intent], others: Iterable[Intent]) -> dict[str, list[Intent]]:
    found: dict[str, list[Intent]] = {}
    for other in others:
        if other.is_rival_of(mine[other.document]):
            found.setdefault(other.document, []).append(other)
    return found


def _step_back(
    backend: VectorBackend,
    waiting: dict[str, Intent],
    withdrawn: dict[str, Intent],
    rivals: dict[str, list[Intent]],
) -> None:
    """Withdraw where a rival goes first, and post again where none is left."""
    for document, intent in waiting.items():
        if document not in withdrawn and any(map(intent.yields_to, rivals.get(document, []))):
            remove(backend, [intent])
            withdrawn[document] = intent
        elif document in withdrawn and document not in rivals:
            del withdrawn[document]
            put(backend, [intent])
