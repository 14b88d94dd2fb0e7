"""What a datastore knows of a document: its present version, and what became of earlier ones.

One record a document, `document/ID`. Nothing here reads or writes a datastore but `scan`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreCorrupt

PREFIX = "document/"
_REMEMBERED = 20  # earlier versions of a document


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a document: its number, its entries (one a token) and what it was made of.

    number: id of its entry at position 0. digest: of its text. salt: see Catalog.new_version.
    size: bytes of input. at: when it was put in force, in seconds since the epoch.
    """

    number: int
    tokens: int
    digest: str
    salt: int
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class Earlier:
    """A version that was replaced: when it came in force, and how many tokens it had."""

    at: float
    tokens: int


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document in the catalog.

    stale: numbers of versions whose entries are still to go. forgotten: the document itself is
    to go, with all its entries. earlier: versions that were replaced, oldest first.
    """

    source: str
    name: str
    metadata: Mapping[str, Any]
    version: Version
    stale: tuple[int, ...] = ()
    forgotten: bool = False
    earlier: tuple[Earlier, ...] = ()

    @property
    def id(self) -> str:
        """Source and name."""
        return f"{self.source}/{self.name}"

    @property
    def leaving(self) -> tuple[int, ...]:
        """Numbers of the versions whose entries are to go."""
        return (*self.stale, self.version.number) if self.forgotten else self.stale

    def replacing(self, old: DocumentRecord | None) -> DocumentRecord:
        """Give this document as put in force now, in the place of an old record."""
        version = replace(self.version, at=time.time())
        if old is None:
            return replace(self, version=version)
        # a text that came back has its former number
        stale = tuple(n for n in (*old.stale, old.version.number) if n != version.number)
        last = Earlier(old.version.at, old.version.tokens)
        earlier = () if old.forgotten else (*old.earlier, last)[-_REMEMBERED:]
        return replace(self, version=version, stale=stale, earlier=earlier)

    def encode(self) -> bytes:
        """Give the record's bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def decode(cls, name: str, value: bytes) -> DocumentRecord:
        """Read a record. Raises StoreCorrupt."""
        try:
            fields = json.loads(value)
            version = Version(**fields.pop("version"))
            stale = tuple(fields.pop("stale"))
            earlier = tuple(Earlier(**each) for each in fields.pop("earlier", ()))
            return cls(version=version, stale=stale, earlier=earlier, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"The catalog's record {name!r} cannot be read.") from error


@dataclass(frozen=True, slots=True)
class Change:
    """A document as it is to be; with_entries: False if only its metadata changes."""

    document: DocumentRecord
    with_entries: bool = field(default=True, kw_only=True)

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id


def read(backend: VectorBackend, ids: Iterable[str]) -> dict[str, DocumentRecord]:
    """Read the records of documents that have one, those of forgotten ones too."""
    found = backend.get_records([PREFIX + document for document in ids])
    records = (DocumentRecord.decode(name, value) for name, value in found.items())
    return {record.id: record for record in records}


def scan_all(backend: VectorBackend) -> Iterator[DocumentRecord]:
    """Iterate over the records of a datastore, those of forgotten documents too."""
    for name, value in backend.scan_records(PREFIX):
        yield DocumentRecord.decode(name, value)


def scan(backend: VectorBackend) -> Iterator[DocumentRecord]:
    """Iterate over the documents of a datastore, in bounded memory."""
    return (document for document in scan_all(backend) if not document.forgotten)
