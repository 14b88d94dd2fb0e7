"""The records' collection: one point a record, and one that says how the datastore was made."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from qdrant_client import models

from knnlm_store.errors import StoreCorrupt, StoreError, StoreMismatch
from knnlm_store.values import Spec
from knnlm_store_qdrant import replies
from knnlm_store_qdrant.copies import ORDERING, Page, Question, ask
from knnlm_store_qdrant.failures import unreadable
from knnlm_store_qdrant.options import STORAGES
from knnlm_store_qdrant.server import Server

FORMAT = 1
LARGEST = 8 * 2**20
"""Bytes a record may have: it travels in one request, which is what makes its change atomic."""
GROUP = "group"  # what stands before the first slash of a name; filtered by the server

_NAME, _VALUE, _MADE = "name", "value", "made"
_NAMES = UUID("5c1ab1f6-0d0b-4f57-9b6f-3f6d7d2c8a11")  # of points that are records
_MADE_ID = "00000000-0000-0000-0000-000000000001"
_SENT = 4 * 2**20  # bytes of JSON in a request, unless one record is larger
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Made:
    """How a datastore was made: its spec, and whether it has an index."""

    spec: Spec
    index: str


class RecordCollection:
    """The points of a collection; threads may share it."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name

    def put(self, records: Mapping[str, bytes]) -> None:
        """Write records, each atomically. Raises StoreError for one that is too large."""
        batch: list[models.PointStruct] = []
        size = 0
        for name, value in records.items():
            point = _point(name, value)
            length = len(name) + len(value) * 4 // 3 + 200
            if batch and size + length > _SENT:
                self._upsert(batch)
                batch, size = [], 0
            batch.append(point)
            size += length
        if batch:
            self._upsert(batch)

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _PAGE):
            points = self._retrieve([_id(name) for name in names[start : start + _PAGE]])
            found.update(map(self._read, points))
        return {name: found[name] for name in names if name in found}

    def delete(self, names: Sequence[str]) -> None:
        """Remove records; unknown names are ignored."""
        for start in range(0, len(names), _PAGE):
            self._delete([_id(name) for name in names[start : start + _PAGE]])

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records whose name starts with `prefix`."""
        group, slash, _ = prefix.partition("/")
        match = models.MatchValue(value=group + slash)
        chosen = models.Filter(
            must=[models.FieldCondition(key=GROUP, match=match)] if slash else None,
            must_not=[models.HasIdCondition(has_id=[_MADE_ID])],
        )
        after: models.ExtendedPointId | None = None
        while True:
            points, after = ask(self._server, self._page(chosen, after))
            for name, value in map(self._read, points):
                if name.startswith(prefix):
                    yield name, value
            if after is None:
                return

    def made(self) -> Made | None:
        """Read how the datastore was made; None while it is not whole.

        Raises StoreNotFound, StoreCorrupt, StoreMismatch (a newer format).
        """
        points = self._retrieve([_MADE_ID])
        if not points:
            return None
        try:
            fields = json.loads((points[0].payload or {})[_MADE])
            if fields["format"] > FORMAT:
                raise StoreMismatch(
                    f"{self._name} has format {fields['format']}; this version reads up to "
                    f"{FORMAT}.",
                    field="format",
                    hint="Update knnlm-store.",
                )
            return _checked(Made(Spec(fields["dimension"], fields["storage"]), fields["index"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(
                f"{self._name} on Qdrant at {self._server.place} does not say what it holds.",
                hint="Restore the collection from a snapshot, or drop the datastore.",
            ) from error

    def set_made(self, made: Made) -> None:
        """Write how the datastore was made: from now on it is there."""
        fields = {
            "format": FORMAT,
            "dimension": made.spec.dimension,
            "storage": made.spec.storage,
            "index": made.index,
        }
        payload = {_MADE: json.dumps(fields)}
        self._upsert([models.PointStruct(id=_MADE_ID, vector=[0.0], payload=payload)])

    def clear_made(self) -> None:
        """Remove what `set_made` wrote: from now on it is not there."""
        self._delete([_MADE_ID])

    def _retrieve(self, ids: list[str]) -> list[models.Record]:
        return ask(
            self._server,
            lambda client, consistency: client.retrieve(
                self._name, ids, with_payload=True, consistency=consistency
            ),
        )

    def _page(self, chosen: models.Filter, after: models.ExtendedPointId | None) -> Question[Page]:
        """Make the question for the points that pass, from `after` on."""
        return lambda client, consistency: client.scroll(
            self._name,
            scroll_filter=chosen,
            limit=_PAGE,
            offset=after,
            with_payload=True,
            consistency=consistency,
        )

    def _upsert(self, points: list[models.PointStruct]) -> None:
        with self._server.calling() as client:
            done = client.upsert(self._name, points, wait=True, ordering=ORDERING)
        replies.require_done(done, self._server.place)

    def _delete(self, ids: list[str]) -> None:
        selector = models.PointIdsList(points=list[models.ExtendedPointId](ids))
        with self._server.calling() as client:
            done = client.delete(self._name, selector, wait=True, ordering=ORDERING)
        replies.require_done(done, self._server.place)

    def _read(self, point: models.Record) -> tuple[str, bytes]:
        try:
            payload = point.payload or {}
            name, value = payload[_NAME], base64.b64decode(payload[_VALUE], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise unreadable(self._server.place, "a record that is none of ours") from error
        if not isinstance(name, str) or str(point.id) != _id(name):
            raise unreadable(self._server.place, "a record under another's id")
        return name, value


def _checked(made: Made) -> Made:
    if not isinstance(made.spec.dimension, int) or made.spec.dimension < 1:
        raise ValueError("no dimension")
    if made.spec.storage not in STORAGES or made.index not in ("hnsw", "exact"):
        raise ValueError("no storage or index of ours")
    return made


def _point(name: str, value: bytes) -> models.PointStruct:
    if len(value) > LARGEST:
        raise StoreError(
            f"The record {name!r} has {len(value):,} bytes; Qdrant keeps up to {LARGEST:,}.",
            hint="Keep a smaller transform: fewer components.",
        )
    group, slash, _ = name.partition("/")
    payload = {
        _NAME: name,
        GROUP: group + slash if slash else "",
        _VALUE: base64.b64encode(value).decode(),
    }
    return models.PointStruct(id=_id(name), vector=[0.0], payload=payload)


def _id(name: str) -> str:
    return str(uuid5(_NAMES, name))
