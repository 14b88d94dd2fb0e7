"""A bundle's catalog and records, read into memory and believed only if they agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnlm_store.bundle import tables
from knnlm_store.bundle.listing import BundleFile, Listing, check_digest, damaged
from knnlm_store.copying import BOOKKEEPING
from knnlm_store.documents import PREFIX, DocumentRecord
from knnlm_store.errors import StoreCorrupt
from knnlm_store.values import MAX_ID, Int64, is_count, is_time


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a bundle holds besides entries.

    records: by name. documents: records of the documents, by name, in the order of the entries.
    numbers, tokens: of each document, int64 `[n]`. starts: row of its first entry, int64 `[n]`.
    """

    records: dict[str, bytes]
    documents: dict[str, bytes]
    numbers: Int64
    tokens: Int64
    starts: Int64

    @classmethod
    def read(cls, folder: Path, listing: Listing) -> Contents:
        """Read and check the two files. Raises StoreCorrupt, naming the file."""
        documents: dict[str, bytes] = {}
        versions: list[tuple[int, int]] = []
        place = folder / listing.the("documents").name
        for row in _rows(folder, listing.the("documents"), tables.documents_schema()):
            record = _document(place, row)
            if documents and not next(reversed(documents)) < PREFIX + record.id:
                raise damaged(place, f"names {record.id!r} twice, or out of order")
            documents[PREFIX + record.id] = row["record"].encode()
            versions.append((record.version.number, record.version.tokens))
        numbers, tokens = np.array(versions, np.int64).reshape(-1, 2).T
        _require_apart(place, numbers, tokens)
        if int(tokens.sum()) != listing.entries:
            raise damaged(place, "promises another number of entries than the bundle has")
        starts = np.cumsum(tokens) - tokens
        return cls(_records(folder, listing), documents, numbers, tokens, starts)


def _rows(folder: Path, file: BundleFile, schema: Any) -> Iterator[dict[str, Any]]:
    """Rows of a small file, whose checksum and length are right."""
    check_digest(folder, file)
    path = folder / file.name
    with tables.opened(path, schema) as table:
        if table.metadata.num_rows != file.rows:
            raise damaged(path, "has another number of rows than the bundle says")
        for batch in table.iter_batches():
            yield from batch.to_pylist()


def _records(folder: Path, listing: Listing) -> dict[str, bytes]:
    file = listing.the("records")
    place = folder / file.name
    records: dict[str, bytes] = {}
    for row in _rows(folder, file, tables.records_schema()):
        name = row["name"]
        if name in records or name.startswith(BOOKKEEPING):
            raise damaged(place, f"holds the record {name!r}, which cannot stand there")
        records[name] = row["value"]
    return records


def _document(place: Path, row: dict[str, Any]) -> DocumentRecord:
    """Read a row of the catalog; its record must be one, and say what its columns say."""
    try:
        record = DocumentRecord.decode(PREFIX + row["id"], row["record"].encode())
        record.encode()  # JSON can spell half a character, which nothing can write
    except (StoreCorrupt, UnicodeEncodeError) as error:
        raise damaged(place, f"has a record of {row['id']!r} that cannot be read") from error
    version = record.version
    said = (record.id, version.number, version.tokens)
    columns = (row["id"], row["number"], row["tokens"])
    sound = (
        all(isinstance(each, str) for each in (record.source, record.name, version.digest))
        and all(type(each) is int for each in (version.number, version.tokens))
        and is_count(version.salt)
        and is_count(version.size)
        and isinstance(record.metadata, dict)
        and is_time(version.at)
        and all(is_time(each.at) and is_count(each.tokens) for each in record.earlier)
    )
    if not sound or said != columns or record.leaving:
        raise damaged(place, f"has a record of {row['id']!r} that no datastore writes")
    if version.tokens < 0 or not 0 <= version.number <= MAX_ID - version.tokens:
        raise damaged(place, f"gives {record.id!r} ids that cannot be")
    return record


def _require_apart(place: Path, numbers: Int64, tokens: Int64) -> None:
    """Raise StoreCorrupt if two documents share an entry's id."""
    order = np.argsort(numbers)
    first, count = numbers[order], tokens[order]
    if len(first) and ((first[:-1] + count[:-1] > first[1:]) | (first[:-1] == first[1:])).any():
        raise damaged(place, "has two documents that share an id")
