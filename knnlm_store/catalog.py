"""Which documents a datastore holds, and how one version of a document replaces another.

One record a document, `document/ID`, written only by who holds the document's intent (see
intents.py). A change runs through states that are each safe to die in:

    claim    an intent names the new version           (whoever finds it abandoned undoes it)
    write    entries of the new version, flushed
    commit   the version becomes the document's, the old one `stale`; entries of the stale
             version removed, `stale` cleared
    release  intent removed
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from knnlm_store import intents, writers
from knnlm_store.backend import VectorBackend
from knnlm_store.documents import PREFIX, Change, DocumentRecord, Version, read, scan_all
from knnlm_store.errors import StoreError
from knnlm_store.intents import Intent
from knnlm_store.values import MAX_ID
from knnlm_store.wording import counted

_TIDY_PATIENCE = 5.0
_TOGETHER = 256  # documents that are claimed and tidied together: a lease must last for them


class Catalog:
    """The documents of one datastore, read once and kept current as this object changes them."""

    def __init__(self, backend: VectorBackend) -> None:
        self._backend = backend
        self._writer = writers.new_name()
        self._claimed: dict[str, Intent] = {}
        self._ranges: list[tuple[int, int]] | None = None
        self._documents = {document.id: document for document in scan_all(backend)}

    def __len__(self) -> int:
        """Count the documents."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[DocumentRecord]:
        """Iterate over the documents."""
        return (document for document in self._documents.values() if not document.forgotten)

    def get(self, document: str) -> DocumentRecord | None:
        """Look a document up by its id."""
        found = self._documents.get(document)
        return None if found is None or found.forgotten else found

    def new_version(self, document: str, digest: str, tokens: int, size: int) -> Version:
        """Number a new version: entry ids number..number + tokens - 1 are free and its alone.

        The number hashes document and content, so that the same content gets the same ids
        again; where the range would touch another version's, a salt is added and recorded.
        """
        ranges = self._known_ranges()
        for salt in itertools.count():
            number = _hash(document, digest, salt)
            if number + tokens < MAX_ID and _is_free(ranges, number, tokens):
                break
        bisect.insort(ranges, (number, number + tokens))
        return Version(number, tokens, digest, salt, size, time.time())

    # -- changing ------------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Have what this object claims count as in hand until `end_writing`."""
        writers.begin_work(self._writer)

    def end_writing(self) -> None:
        """Leave what is still claimed to the next `recover`, in this process or another."""
        writers.end_work(self._writer)
        self._claimed.clear()

    def claim(
        self,
        changes: Iterable[Change],
        patience: float | None = None,
        sleep: intents.Sleep = time.sleep,
    ) -> set[str]:
        """Make documents ours to change; gives the ids of those that other writers keep.

        Removes what the dead left of them. patience, sleep: see intents.claim.
        """
        wanted = [self._intent(change) for change in changes]
        claims = intents.claim(self._backend, wanted, patience, sleep)
        ours = [intent for intent in wanted if intent.document in claims.won]
        self._claimed.update((intent.document, intent) for intent in ours)
        self._undo(ours, claims.abandoned)
        return {intent.document for intent in wanted} - claims.won

    def renew(self) -> None:
        """Tell writers elsewhere that the claims stand; raises StoreError if any was taken."""
        intents.renew(self._backend, self._claimed.values())

    def commit(self, changes: Iterable[Change]) -> None:
        """Put claimed changes in force, then remove the entries of what they replace.

        They stay claimed until `release`: both can be repeated where an answer got lost.
        Raises StoreError, and commits nothing, if claims or entries are gone.
        """
        changes = list(changes)
        intents.require(self._backend, (self._claimed[change.id] for change in changes))
        now = self._read(change.id for change in changes)
        new = [c for c in changes if c.with_entries and not _is_in_force(c, now)]
        self._require_entries([change.document.version for change in new])
        in_force = [change.document.replacing(now.get(change.id)) for change in new]
        self._put([*in_force, *_with_metadata(changes, now)])
        there = (self._documents[c.id] for c in changes if c.id in self._documents)
        self._settle(there, (self._claimed[change.id] for change in changes))

    def release(self, changes: Iterable[Change]) -> None:
        """Give claims up whose changes are made."""
        documents = [change.id for change in changes]
        intents.remove(self._backend, (self._claimed[document] for document in documents))
        for document in documents:
            del self._claimed[document]

    def recover(self) -> int:
        """Undo what dead writers left half done; gives the number of documents mended."""
        found = list(intents.scan(self._backend))
        documents = {intent.document for intent in found if intent.is_abandoned}
        documents |= {d.id for d in self._documents.values() if d.leaving}
        documents -= {intent.document for intent in found if not intent.is_abandoned}
        return len(self._tidy(documents, _TIDY_PATIENCE))

    def forget(
        self,
        documents: Iterable[str],
        patience: float | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> set[str]:
        """Remove documents and all their entries; gives the ids of those that stay.

        What dead writers left of them goes as well. From the first record that is written here a
        document counts as gone: a run that is killed is finished by the next `recover`, and the
        call can be repeated. versions: numbers of those that are meant; a document with another
        one stays, as do those that other writers keep. patience: see intents.claim.
        """
        wanted = set(documents)
        done = self._tidy(wanted, patience, lambda document: _is_meant(document, versions))
        return wanted - {document for document, gone in done.items() if gone}

    def _tidy(
        self,
        documents: set[str],
        patience: float | None,
        to_forget: Callable[[DocumentRecord], bool] = lambda _: False,
    ) -> dict[str, bool]:
        """Claim documents and remove what is to go, some at a time.

        Gives those that we got, and whether the catalog has none of that id now.
        """
        done: dict[str, bool] = {}
        wanted = sorted(documents)
        self.begin_writing()
        try:
            for start in range(0, len(wanted), _TOGETHER):
                for document in self._tidy_some(
                    wanted[start : start + _TOGETHER], patience, to_forget
                ):
                    done[document] = document not in self._documents
        finally:
            self.end_writing()
        self._ranges = None  # ids of what is gone can be given again
        return done

    def _tidy_some(
        self,
        documents: list[str],
        patience: float | None,
        to_forget: Callable[[DocumentRecord], bool],
    ) -> list[str]:
        mine = [Intent(d, 0, False, self._writer, time.time()) for d in documents]
        claims = intents.claim(self._backend, mine, patience)
        ours = [intent for intent in mine if intent.document in claims.won]
        self._undo(ours, claims.abandoned)
        now = self._read(intent.document for intent in ours)
        intents.renew(self._backend, ours)  # the wait may have taken long
        self._put([replace(d, forgotten=True) for d in now.values() if to_forget(d)])
        self._settle([self._documents[document] for document in now], ours)
        intents.remove(self._backend, ours)
        return [intent.document for intent in ours]

    def _intent(self, change: Change) -> Intent:
        number = change.document.version.number
        return Intent(change.id, number, change.with_entries, self._writer, time.time())

    def _read(self, documents: Iterable[str]) -> dict[str, DocumentRecord]:
        """Read records anew: other writers may have changed them before we claimed them."""
        documents = list(documents)
        now = read(self._backend, documents)
        for document in documents:
            self._documents.pop(document, None)
        self._documents.update(now)
        return now

    def _put(self, documents: list[DocumentRecord]) -> None:
        if documents:
            self._backend.put_records({PREFIX + d.id: d.encode() for d in documents})
            self._documents.update((d.id, d) for d in documents)

    def _undo(self, ours: list[Intent], abandoned: list[Intent]) -> None:
        """Remove the entries that dead writers left of documents that are ours now.

        Touches no record: a writer of the same version may be writing it.
        """
        if not abandoned:
            return
        now = self._read(intent.document for intent in abandoned)
        kept = {record.version.number for record in now.values()}
        kept |= {intent.number for intent in ours}
        self._delete([i.number for i in abandoned if i.writes and i.number not in kept])
        intents.remove(self._backend, abandoned)

    def _require_entries(self, versions: list[Version]) -> None:
        """Notice that entries which were written are not there to be committed."""
        if not versions:
            return
        found = self._backend.count([v.number for v in versions])
        if found != (expected := sum(v.tokens for v in versions)):
            raise StoreError(
                f"Another process removed {expected - found:,} of the "
                f"{counted(expected, 'entry')} that were written.",
                hint="Run the same command again.",
            )

    def _settle(self, documents: Iterable[DocumentRecord], ours: Iterable[Intent]) -> None:
        """Remove the entries of stale versions, and forgotten documents as a whole.

        ours: the claims under which that is done. Raises StoreError, and touches no record, if
        others took us for dead meanwhile: the records may be theirs.
        """
        leaving = [document for document in documents if document.leaving]
        if not leaving:
            return
        self._delete([number for document in leaving for number in document.leaving])
        intents.require(self._backend, ours)
        self._put([replace(d, stale=()) for d in leaving if not d.forgotten])
        gone = [document.id for document in leaving if document.forgotten]
        if gone:
            self._backend.delete_records([PREFIX + document for document in gone])
        for document in gone:
            del self._documents[document]

    def _delete(self, numbers: list[int]) -> None:
        if numbers:
            self._backend.delete(numbers)
            self._backend.flush()

    def _known_ranges(self) -> list[tuple[int, int]]:
        """Ranges of ids that are taken, sorted; those of versions that are gone are free."""
        if self._ranges is None:
            versions = (document.version for document in self._documents.values())
            self._ranges = sorted((v.number, v.number + v.tokens) for v in versions)
        return self._ranges


def _is_free(ranges: list[tuple[int, int]], number: int, tokens: int) -> bool:
    """Whether number..number + tokens, one unused id included, touches none of the ranges."""
    place = bisect.bisect_left(ranges, (number, 0))
    before = ranges[place - 1][1] if place else -1
    after = ranges[place][0] if place < len(ranges) else MAX_ID
    return before < number and number + tokens < after


def _is_meant(document: DocumentRecord, versions: Mapping[str, int] | None) -> bool:
    return versions is None or versions.get(document.id) == document.version.number


def _is_in_force(change: Change, now: Mapping[str, DocumentRecord]) -> bool:
    """Whether a writer of the same content was first."""
    known = now.get(change.id)
    if known is None or known.forgotten:
        return False
    return known.version.number == change.document.version.number


def _with_metadata(
    changes: list[Change], now: Mapping[str, DocumentRecord]
) -> Iterator[DocumentRecord]:
    for change in changes:
        if _is_in_force(change, now):
            yield replace(now[change.id], metadata=change.document.metadata)


def _hash(document: str, digest: str, salt: int) -> int:
    content = json.dumps([document, digest, salt]).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") & MAX_ID
