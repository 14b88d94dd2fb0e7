"""What a cluster is told: who must have a write, and whose answer counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from qdrant_client import QdrantClient, models

from knnlm_store.errors import BackendUnavailable
from knnlm_store.values import Freshness
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.options import Options
from knnlm_store_qdrant.server import opened
from tests import qdrant_support as support
from tests.qdrant_engine_support import refusal
from tests.qdrant_front import Asked, Front, Reply
from tests.qdrant_support import Frugal, created, document

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store


def told(asked: Asked, name: str) -> str | None:
    """A parameter of the query string."""
    return next(iter(parse_qs(urlsplit(asked.path).query).get(name, [])), None)


def of(front: Front, line: str) -> list[Asked]:
    found = [asked for asked in front.log if asked.line == line]
    assert found, front.lines()
    return found


def test_writes_go_through_one_leader(store: Frugal, front: Front) -> None:
    """Of entries and of records alike, and deletions."""
    created(store).upsert(document(1, 5))
    store.put_records({"a": b"1"})
    store.delete([1])
    store.delete_records(["a"])
    for collection in ("law", "law.records"):
        place = f"/collections/{collection}/points"
        for asked in of(front, f"PUT {place}") + of(front, f"POST {place}/delete"):
            assert told(asked, "ordering") == "strong"
            assert told(asked, "wait") == "true"


def test_records_and_scans_are_what_most_copies_say(store: Frugal, front: Front) -> None:
    created(store).upsert(document(1, 5))
    store.put_records({"a/1": b"1"})
    again = Frugal.connect(front.location("law"))
    front.log.clear()
    assert again.get_records(["a/1"]) == {"a/1": b"1"}
    assert list(again.scan_records("a/")) == [("a/1", b"1")]
    assert sum(len(entries) for entries in again.scan()) == 5
    again.close()
    lines = ["/law.records/points", "/law.records/points/scroll", "/law/points/scroll"]
    for line in lines:
        for asked in of(front, f"POST /collections{line}"):
            assert told(asked, "consistency") == "majority"


@pytest.mark.parametrize(
    ("index", "freshness", "expected"),
    [
        ("exact", Freshness.LATEST, "majority"),
        ("exact", Freshness.FAST, None),
        ("hnsw", Freshness.LATEST, None),  # copies have different graphs: they would not agree
        ("hnsw", Freshness.FAST, None),
    ],
)
def test_searches(
    store: Frugal, front: Front, index: str, freshness: Freshness, expected: str | None
) -> None:
    created(store, index=index).upsert(document(1, 5))
    front.log.clear()
    assert store.search(document(1, 1).keys, 3, freshness=freshness).ids[0, 0] == 1
    (asked,) = of(front, "POST /collections/law/points/query/batch")
    assert told(asked, "consistency") == expected


DOWN = (
    "Service internal error: The replica set for shard 0 on peer 1 does not have enough active "
    "replicas",
    "Service internal error: 1 of 2 read operations failed:\n  connection refused",
)


@pytest.mark.parametrize("words", DOWN)
def test_a_copy_that_is_down_keeps_nobody_from_reading(
    store: Frugal, front: Front, words: str
) -> None:
    """The others have every write that was acknowledged: all had to have it."""
    created(store, index="exact").upsert(document(1, 5))
    store.put_records({"a/1": b"1"})
    front.change = _refusing(words)
    again = Frugal.connect(front.location("law"))
    assert again.get_records(["a/1"]) == {"a/1": b"1"}
    assert list(again.scan_records("a/")) == [("a/1", b"1")]
    assert sum(len(entries) for entries in again.scan()) == 5
    assert again.search(document(1, 1).keys, 3).ids[0, 0] == 1
    again.close()


def test_other_refusals_are_not_asked_twice(store: Frugal, front: Front) -> None:
    created(store)
    front.change = _refusing("Service internal error: panic")
    front.log.clear()
    with pytest.raises(BackendUnavailable, match="panic"):
        store.get_records(["a"])
    assert len(front.log) == 1


def _refusing(words: str) -> Callable[[Asked, Reply], Reply | None]:
    """Answer reads that ask several copies as a cluster with a node down does."""
    refused = (500, json.dumps({"status": {"error": words}}).encode())
    return lambda asked, reply: refused if told(asked, "consistency") else reply


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"replication_factor": "3"}, 3),
        ({"replication_factor": "3", "write_consistency_factor": "2"}, 2),
        ({"write_consistency_factor": "2"}, 2),
        ({}, None),
    ],
    ids=str,
)
def test_all_copies_acknowledge_unless_told_otherwise(
    front: Front, vendor: QdrantClient, options: dict[str, str], expected: int | None
) -> None:
    """As it is sent for both collections; the engine, which is one node, is not listened to."""
    front.change = lambda asked, reply: (
        (500, b"") if asked.line == "PUT /collections/law" else (200, b'{"result": true}')
    )
    store = QdrantBackend(front.location("law"), opened(front.location("law")))
    front.log.clear()
    with pytest.raises(BackendUnavailable):
        created(store, "float16", 16, **options)
    for name in ("law.records", "law"):
        (asked,) = of(front, f"PUT /collections/{name}")
        assert asked.json.get("write_consistency_factor") == expected
        factor = options.get("replication_factor")
        assert asked.json.get("replication_factor") == (factor and int(factor))
    store.close()
    assert Options.of(options).records_collection()["write_consistency_factor"] == expected


def test_the_engine_knows_what_it_honours(store: Frugal, vendor: QdrantClient) -> None:
    """One node has one copy, so any consistency is right; what Qdrant does not know is refused."""
    created(store).upsert(document(1, 5))
    for consistency in (1, 2, *models.ReadConsistencyType):
        points, _ = vendor.scroll("law", consistency=consistency)
        assert len(points) == 5
    for ordering in models.WriteOrdering:
        vendor.delete("law", [1], ordering=ordering)
    for wrong in ("most", "-1"):
        with refusal(400, "Format error"):
            vendor.scroll("law", consistency=wrong)  # type: ignore[arg-type]
    with refusal(400, "Format error"):
        vendor.delete("law", [1], ordering="brave")  # type: ignore[arg-type]
