"""Records in a collection of their own, beside the main one.

A record is a head row and, if it is large, rows of chunks, which bear a generation. Chunks are
written first, the head that names their generation last, and then the old chunks are removed: a
reader sees the old value or the new one.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymilvus import DataType

from knnlm_store.errors import StoreCorrupt, UsageError
from knnlm_store_milvus.connection import Connection

ANCHOR = "anchor"
"""A vector that means nothing: Milvus takes no collection without one."""
INDEX = {"index_type": "FLAT", "metric_type": "L2", "params": {}}
_INLINE = 6 * 1024  # bytes of a value that its head holds
_CHUNK = 45 * 1024  # bytes of a chunk: 60 KiB as base64; a VARCHAR holds 64 KiB less one
_LONGEST = 65535
_NAMES = 1000  # names a request
_CHUNKS = 200  # chunks a request: 12 MB
_HEAD = ["owner", "name", "generation", "chunks", "value"]
_ATTEMPTS = 6


def fields() -> list[dict[str, Any]]:
    """The schema of a collection of records.

    owner: digest of the name; kin: of the name up to its first slash. chunks: how many there are,
    in a head; -1 in a chunk.
    """
    text = {"datatype": DataType.VARCHAR}
    return [
        {"field_name": "id", "is_primary": True, "max_length": 128, **text},
        {"field_name": "owner", "max_length": 64, **text},
        {"field_name": "kin", "max_length": 64, **text},
        {"field_name": "name", "max_length": _LONGEST, **text},
        {"field_name": "generation", "max_length": 64, **text},
        {"field_name": "chunks", "datatype": DataType.INT64},
        {"field_name": "value", "max_length": _LONGEST, **text},
        {"field_name": ANCHOR, "datatype": DataType.FLOAT_VECTOR, "dim": 2},
    ]


class RecordTable:
    """The records of one datastore."""

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection = connection
        self.name = collection

    def put(self, records: Mapping[str, bytes], *, fresh: bool = False) -> None:
        """Write records, each atomically; `fresh` if there are none yet."""
        names = list(records)
        for start in range(0, len(names), _NAMES):
            part = {name: records[name] for name in names[start : start + _NAMES]}
            old = [] if fresh else self._generations([_digest(name) for name in part])
            heads = []
            for name, value in part.items():
                head, chunks = _rows(name, value)
                heads.append(head)
                for first in range(0, len(chunks), _CHUNKS):
                    self._connection.upsert(self.name, chunks[first : first + _CHUNKS])
            self._connection.upsert(self.name, heads)
            if old:
                self._connection.delete(self.name, f"chunks < 0 and generation in {_list(old)}")

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        found: dict[str, bytes] = {}
        missing = list(dict.fromkeys(names))
        for attempt in range(_ATTEMPTS):
            torn = []
            for head in self._heads(missing):
                value = self._value(head)
                if value is None:
                    torn.append(head["name"])
                else:
                    found[head["name"]] = value
            if not torn:
                return found
            missing = torn  # replaced this moment: the next look sees the new head
            time.sleep(0.05 * attempt)
        raise StoreCorrupt(
            f"The record {missing[0]!r} in {self._connection.label}/{self.name} lacks a part.",
            hint="Drop the datastore and ingest again.",
        )

    def delete(self, names: Sequence[str]) -> None:
        """Remove records; unknown names are ignored."""
        owners = [_digest(name) for name in names]
        for start in range(0, len(owners), _NAMES):
            self._connection.delete(self.name, f"owner in {_list(owners[start : start + _NAMES])}")

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records whose name starts with `prefix`."""
        condition = "chunks >= 0"
        if "/" in prefix:
            condition += f' and kin == "{_kin(prefix)}"'
        for page in self._connection.pages(self.name, condition, _HEAD, _NAMES):
            with self._connection.reading():
                heads = [head for head in page if head["name"].startswith(prefix)]
            for head in heads:
                value = self._value(head)
                if value is not None:
                    yield head["name"], value
                else:
                    yield from self.get([head["name"]]).items()

    def _heads(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(names), _NAMES):
            owners = _list([_digest(name) for name in names[start : start + _NAMES]])
            condition = f"chunks >= 0 and owner in {owners}"
            heads = self._connection.query(self.name, condition, _HEAD)
            with self._connection.reading():
                yield from ({field: head[field] for field in _HEAD} for head in heads)

    def _generations(self, owners: list[str]) -> list[str]:
        condition = f"chunks > 0 and owner in {_list(owners)}"
        heads = self._connection.query(self.name, condition, ["generation"])
        with self._connection.reading():
            return [head["generation"] for head in heads]

    def _value(self, head: Mapping[str, Any]) -> bytes | None:
        """A record's value; None if a chunk of it is gone."""
        with self._connection.reading():
            if head["chunks"] == 0:
                return base64.b64decode(head["value"], validate=True)
            ids = _chunk_ids(head["owner"], head["generation"], head["chunks"])
        texts: dict[str, str] = {}
        for start in range(0, len(ids), _CHUNKS):
            condition = f"id in {_list(ids[start : start + _CHUNKS])}"
            rows = self._connection.query(self.name, condition, ["id", "value"])
            with self._connection.reading():
                texts |= {row["id"]: row["value"] for row in rows}
        if len(texts) < len(ids):
            return None
        with self._connection.reading():
            return b"".join(base64.b64decode(texts[id_], validate=True) for id_ in ids)


def _rows(name: str, value: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head and the chunks of a record. Raises UsageError for a name that is too long."""
    if len(name.encode()) > _LONGEST:
        raise UsageError(
            f"A record's name must not exceed {_LONGEST:,} bytes in Milvus: {name[:40]!r}...",
            hint="Shorten the path of the document.",
        )
    owner, generation = _digest(name), uuid.uuid4().hex
    head: dict[str, Any] = {
        "id": owner,
        "owner": owner,
        "kin": _kin(name),
        "name": name,
        "generation": "",
        "chunks": 0,
        "value": base64.b64encode(value).decode(),
        ANCHOR: [0.0, 0.0],
    }
    if len(value) <= _INLINE:
        return head, []
    parts = [value[i : i + _CHUNK] for i in range(0, len(value), _CHUNK)]
    head |= {"generation": generation, "chunks": len(parts), "value": ""}
    ids = _chunk_ids(owner, generation, len(parts))
    chunks = [
        head | {"id": id_, "name": "", "chunks": -1, "value": base64.b64encode(part).decode()}
        for id_, part in zip(ids, parts, strict=True)
    ]
    return head, chunks


def _chunk_ids(owner: str, generation: str, count: int) -> list[str]:
    return [f"{owner}.{generation}.{i:06}" for i in range(count)]


def _kin(name: str) -> str:
    return _digest(name.partition("/")[0])


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _list(texts: Sequence[str]) -> str:
    """A list in Milvus' expressions, of texts that need no quoting."""
    return "[" + ",".join(f'"{text}"' for text in texts) + "]"
