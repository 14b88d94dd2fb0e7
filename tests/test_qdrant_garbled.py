"""Replies that a proxy has spoilt, and connections that break."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from knnlm_store.errors import BackendUnavailable, StoreCorrupt
from knnlm_store_qdrant.engine import acquire
from tests import qdrant_support as support
from tests.qdrant_front import Asked, Front, Reply, fronted
from tests.qdrant_support import Frugal, created, document

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store

CALLS: dict[str, Callable[[Frugal], object]] = {
    "search": lambda s: s.search(document(1, 2).keys, 3, with_keys=True),
    "scan": lambda s: list(s.scan(with_keys=True)),
    "count": lambda s: s.count(),
    "upsert": lambda s: s.upsert(document(1, 3)),
    "delete": lambda s: s.delete([1]),
    "get_records": lambda s: s.get_records(["manifest"]),
    "put_records": lambda s: s.put_records({"a": b"1"}),
    "delete_records": lambda s: s.delete_records(["a"]),
    "scan_records": lambda s: list(s.scan_records("")),
    "exists": lambda s: s.exists(),
    "names": lambda s: s.names(s._location),
    "connect": lambda s: s.connect(s._location),
    "aliases": lambda s: s.aliases(s._location),
    "set_alias": lambda s: s.set_alias("x"),
    "build_index": lambda s: s.build_index(),
    "describe_index": lambda s: s.describe_index(),
    "drop": lambda s: s.drop(),
}
GARBLED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda body: b"",
    "a page": lambda body: b"<html></html>",
    "half": lambda body: body[: len(body) // 2],
    "null": lambda body: b"null",
    "no result": lambda body: b'{"status": "ok", "time": 0}',
    "a null result": lambda body: b'{"result": null, "status": "ok", "time": 0}',
    "a text": lambda body: b'{"result": "x", "status": "ok", "time": 0}',
    "no text": lambda body: b"\xff\xfe\x00",
}


@pytest.mark.parametrize("call", CALLS)
def test_replies_that_cannot_be_read(store: Frugal, front: Front, call: str) -> None:
    created(store).upsert(document(1, 20))
    for garble in GARBLED.values():
        front.change = _garbling(garble)
        with pytest.raises(StoreCorrupt, match="sent a reply that cannot be read"):
            CALLS[call](store)
        front.change = lambda _, reply: reply
        assert store.exists() or call == "drop"


def _garbling(garble: Callable[[bytes], bytes]) -> Callable[[Asked, Reply], Reply]:
    return lambda _, reply: (200, garble(reply[1]))


@pytest.mark.parametrize("call", [call for call in CALLS if call != "drop"])
def test_connections_that_break(store: Frugal, front: Front, call: str) -> None:
    """Before the server has the request, and after it has served it."""
    created(store).upsert(document(1, 20))
    for hook in ("before", "change"):
        setattr(front, hook, lambda *_: None)
        with pytest.raises(BackendUnavailable, match=r"The connection to Qdrant at .* broke"):
            CALLS[call](store)
        front.before, front.change = bool, lambda _, reply: reply
    assert store.exists()


Point = dict[str, Any]
WRONG_POINTS: dict[str, tuple[Callable[[list[Point]], object], str]] = {
    "no token": (lambda p: p[0]["payload"].pop("t"), "an entry without 't'"),
    "no document": (lambda p: p[1]["payload"].pop("d"), "an entry without 'd'"),
    "no payload": (lambda p: p[0].pop("payload"), "an entry without"),
    "token of text": (lambda p: p[0]["payload"].update(t="7"), "none of ours"),
    "token of float": (lambda p: p[0]["payload"].update(t=7.5), "none of ours"),
    "token of null": (lambda p: p[0]["payload"].update(t=None), "none of ours"),
    "token too large": (lambda p: p[0]["payload"].update(t=2**32), "do not belong together"),
    "token below 0": (lambda p: p[0]["payload"].update(t=-1), "do not belong together"),
    "document after id": (lambda p: p[0]["payload"].update(d=999), "do not belong together"),
    "document below 0": (lambda p: p[0]["payload"].update(d=-1), "do not belong together"),
    "id of text": (lambda p: p[0].update(id="x"), "none of ours"),
    "id beyond int63": (lambda p: p[0].update(id=2**63), "none of ours"),
    "id beyond uint64": (lambda p: p[0].update(id=2**70), "none of ours"),
    "short key": (lambda p: p[0]["vector"].pop(), "none of ours"),
    "short keys": (lambda p: [each["vector"].pop() for each in p], "none of ours"),
    "no key": (lambda p: p[0].pop("vector"), "none of ours"),
    "key of null": (lambda p: p[0].update(vector=[None] * 16), "none of ours"),
    "endless key": (lambda p: p[0].update(vector=[1e300] * 16), "none of ours"),
    "key of text": (lambda p: p[0].update(vector=["x"] * 16), "none of ours"),
}
WRONG_HITS: dict[str, tuple[Callable[[list[Point]], object], str]] = {
    "id twice": (lambda p: p.append(p.pop(0) and p[0]), "stands twice"),
    "too many": (lambda p: p.append(p[0] | {"id": 9}), "4 neighbours where 3"),
    "distance below 0": (lambda p: p[0].update(score=-0.5), "distances that are none"),
    "endless distance": (lambda p: p[0].update(score=1e300), "distances that are none"),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Frugal, Front]]:
    """A datastore of 20 entries that is only read, and the front before it."""
    endpoint = acquire(tmp_path_factory.mktemp("held"))
    with pytest.MonkeyPatch.context() as patch, fronted(endpoint) as front:
        patch.setenv("KNNLM_QDRANT_API_KEY", endpoint.api_key)
        with closing(Frugal.connect(front.location("held"))) as store:
            created(store).upsert(document(1, 20))
            yield store, front
    endpoint.release()


@pytest.mark.parametrize("case", WRONG_POINTS | WRONG_HITS)
def test_points_that_are_none_of_ours(held: tuple[Frugal, Front], case: str) -> None:
    """In what a search finds, and in what a scan reads: never a KeyError, nor a wrong entry."""
    store, front = held
    spoil, words = (WRONG_POINTS | WRONG_HITS)[case]

    def change(asked: Asked, reply: Reply) -> Reply:
        said = json.loads(reply[1])
        if asked.line.endswith("query/batch"):
            spoil(said["result"][0]["points"])
        elif asked.line.endswith("scroll"):
            spoil(said["result"]["points"])
        return reply[0], json.dumps(said).encode()

    front.change = change
    with pytest.raises(StoreCorrupt, match=f"cannot be read: .*{words}"):
        store.search(document(1, 2).keys, 3, with_keys=True)
    if case in WRONG_POINTS:
        with pytest.raises(StoreCorrupt, match=f"cannot be read: .*{words}"):
            list(store.scan(with_keys=True))


def test_answers_to_some_queries_only(held: tuple[Frugal, Front]) -> None:
    store, front = held

    def change(asked: Asked, reply: Reply) -> Reply:
        said = json.loads(reply[1])
        if asked.line.endswith("query/batch"):
            said["result"].pop()
        return reply[0], json.dumps(said).encode()

    front.change = change
    with pytest.raises(StoreCorrupt, match="1 answers to 2 queries"):
        store.search(document(1, 2).keys, 3)


def test_records_that_are_none_of_ours(store: Frugal, front: Front, vendor: QdrantClient) -> None:
    created(store)
    for payload in ({}, {"name": "a", "value": "*"}, {"name": "a", "value": ""}, {"name": 3}):
        vendor.upsert("law.records", [models.PointStruct(id=5, vector=[0.0], payload=payload)])
        with pytest.raises(StoreCorrupt, match="a record"):
            list(store.scan_records(""))


def test_writes_that_are_not_done(store: Frugal, front: Front) -> None:
    """Accepted is not written: the caller must write again."""
    created(store)
    front.change = lambda _, r: (r[0], r[1].replace(b'"completed"', b'"acknowledged"'))
    for call in ("upsert", "delete", "put_records", "delete_records"):
        with pytest.raises(BackendUnavailable, match="has not finished a write"):
            CALLS[call](store)
