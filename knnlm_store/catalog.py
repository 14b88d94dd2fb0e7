"""Which documents a datastore holds, and how one version of a document replaces another.

One record a document, `document/ID`. A change runs through states that are each safe to die in:

    begin    `intent` names the new version            (a run that finds it removes its entries)
    write    entries of the new version, flushed
    commit   the version becomes the document's, the old one `stale`
    settle   entries of the stale version removed, `stale` cleared

An intent belongs to the writer that made it; others leave it alone while that writer's process
lives, and the same process while the writer is at work.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreCorrupt, StoreError
from knnlm_store.values import MAX_ID

_PREFIX = "document/"
# An intent of a process on another machine counts as abandoned after this many seconds.
LEASE = 3600.0

_serials = itertools.count()
_at_work: set[str] = set()  # writers of this process whose intents are alive


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a document: its number, its entries (one a token) and what it was made of."""

    number: int
    tokens: int
    digest: str
    salt: int
    size: int
    at: float
    writer: str = ""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document in the catalog. `version` is None while its first version is being written."""

    source: str
    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: Version | None = None
    intent: Version | None = None
    stale: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Source and name."""
        return f"{self.source}/{self.name}"

    def encode(self) -> bytes:
        """Give the record's bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def decode(cls, name: str, value: bytes) -> DocumentRecord:
        """Read a record. Raises StoreCorrupt."""
        try:
            fields = json.loads(value)
            for key in ("version", "intent"):
                fields[key] = Version(**fields[key]) if fields[key] else None
            fields["stale"] = tuple(fields["stale"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"The catalog's record {name!r} cannot be read.") from error


class Catalog:
    """The documents of one datastore, read once and kept current as this object changes them."""

    def __init__(self, backend: VectorBackend) -> None:
        self._backend = backend
        self._writer = f"{_me()}:{next(_serials)}"
        self._ranges: list[tuple[int, int]] = []
        self._documents = {document.id: document for document in scan(backend)}
        self._collect_ranges()

    def __len__(self) -> int:
        """Count the documents."""
        return len(self._documents)

    def __iter__(self) -> Iterator[DocumentRecord]:
        """Iterate over the documents."""
        return iter(self._documents.values())

    def begin_writing(self) -> None:
        """Have this object's intents count as alive until `end_writing`."""
        _at_work.add(self._writer)

    def end_writing(self) -> None:
        """Leave whatever intents are left to the next `recover`, in this process or another."""
        _at_work.discard(self._writer)

    def get(self, document: str) -> DocumentRecord | None:
        """Look a document up by its id."""
        return self._documents.get(document)

    def new_version(self, document: str, digest: str, tokens: int, size: int) -> Version:
        """Number a new version: entry ids number..number + tokens - 1 are free and its alone.

        The number hashes document and content, so that the same content gets the same ids
        again; where the range would touch another version's, a salt is added and recorded.
        """
        number, salt = self._number(document, digest, tokens)
        bisect.insort(self._ranges, (number, number + tokens))
        return Version(number, tokens, digest, salt, size, time.time(), self._writer)

    def _number(self, document: str, digest: str, tokens: int) -> tuple[int, int]:
        current = self._documents.get(document)
        if current and current.intent and current.intent.digest == digest:
            # another writer is at the same content: the same ids make both writes one
            return current.intent.number, current.intent.salt
        for salt in itertools.count():
            number = _hash(document, digest, salt)
            if number + tokens < MAX_ID and self._is_free(number, tokens):
                return number, salt
        raise AssertionError

    def put(self, documents: Iterable[DocumentRecord]) -> None:
        """Write documents, each atomically."""
        documents = list(documents)
        self._backend.put_records({_PREFIX + d.id: d.encode() for d in documents})
        self._documents.update((d.id, d) for d in documents)

    def remove(self, documents: Iterable[str]) -> None:
        """Remove the records of documents whose entries are gone."""
        documents = list(documents)
        self._backend.delete_records([_PREFIX + d for d in documents])
        for document in documents:
            self._documents.pop(document, None)
        self._collect_ranges()

    def commit(self, documents: Iterable[DocumentRecord]) -> None:
        """Make intents the documents' versions, then remove the entries of what they replace.

        Raises StoreError, and commits nothing, if entries are missing that were written.
        """
        changed = []
        pairs = [(d, d.intent) for d in documents if d.intent is not None]
        self._require_entries([intent for _, intent in pairs])
        for document, intent in pairs:
            old = (document.version.number,) if document.version else ()
            version = replace(intent, at=time.time(), writer="")
            changed.append(
                replace(document, version=version, intent=None, stale=document.stale + old)
            )
        self.put(changed)
        self._settle(changed)

    def _require_entries(self, versions: list[Version]) -> None:
        """Notice that another process took these intents for abandoned ones and undid them."""
        if not versions:
            return
        found = self._backend.count([v.number for v in versions])
        if found != (expected := sum(v.tokens for v in versions)):
            raise StoreError(
                f"Of {expected} entries that were written {expected - found} are gone: "
                "another process removed them.",
                hint="Run the same command again.",
            )

    def recover(self) -> int:
        """Undo abandoned intents and finish removals; gives the number of documents mended."""
        undone = [d for d in self if d.intent and _abandoned(d.intent)]
        if undone:
            self._backend.delete([d.intent.number for d in undone if d.intent])
            self._backend.flush()
            self.remove(d.id for d in undone if d.version is None)
            self.put(replace(d, intent=None) for d in undone if d.version is not None)
        stale = [d for d in self if d.stale]
        self._settle(stale)
        self._collect_ranges()
        return len({d.id for d in (*undone, *stale)})

    def _settle(self, documents: list[DocumentRecord]) -> None:
        with_stale = [d for d in documents if d.stale]
        if with_stale:
            self._backend.delete([number for d in with_stale for number in d.stale])
            self._backend.flush()
            self.put(replace(d, stale=()) for d in with_stale)

    def _collect_ranges(self) -> None:
        """Forget the ranges of versions that are gone, so that their ids can be given again."""
        self._ranges = sorted(span for document in self for span in _spans(document))

    def _is_free(self, number: int, tokens: int) -> bool:
        """Whether number..number + tokens, one unused id included, touches no known range."""
        place = bisect.bisect_left(self._ranges, (number, 0))
        before = self._ranges[place - 1][1] if place else -1
        after = self._ranges[place][0] if place < len(self._ranges) else MAX_ID
        return before < number and number + tokens < after


def scan(backend: VectorBackend) -> Iterator[DocumentRecord]:
    """Iterate over the documents of a datastore, by id, in bounded memory."""
    for name, value in backend.scan_records(_PREFIX):
        yield DocumentRecord.decode(name, value)


def _spans(document: DocumentRecord) -> Iterator[tuple[int, int]]:
    """First id of each version of a document, and the id behind its last one."""
    for version in (document.version, document.intent):
        if version is not None:
            yield version.number, version.number + version.tokens


def _hash(document: str, digest: str, salt: int) -> int:
    content = json.dumps([document, digest, salt]).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") & MAX_ID


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process started, so that a reused pid is not mistaken for it.

    `-` if unknown, `dead` if it ended and only its parent has not noticed yet.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return "-"
    return "dead" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _abandoned(intent: Version) -> bool:
    process, _, _ = intent.writer.rpartition(":")
    if process == _me():
        return intent.writer not in _at_work
    host, _, rest = process.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname():
        return time.time() - intent.at > LEASE
    try:
        os.kill(int(rest), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    except PermissionError:
        pass
    return process.rpartition(":")[2] != _started(int(rest))
