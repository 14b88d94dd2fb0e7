"""Points through the embedded engine's REST front: written, read, deleted, many at once."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests import qdrant_engine_support as support
from tests.qdrant_engine_support import (
    DIMENSION,
    clustered,
    create,
    held,
    put,
    refusal,
)

engine, client = support.engine, support.client
name, http = support.name, support.http


# -- points ------------------------------------------------------------------------------------


def test_points_are_read_as_written(client: QdrantClient, name: str) -> None:
    create(client, name)
    ids: list[int | str | uuid.UUID] = [
        0,
        2**53 + 1,
        2**63 - 1,
        2**64 - 1,
        "6c9a9e0e-9c7a-4b7a-8d52-0f9e3f9c0b9d",
    ]
    payload = {"d": 2**63 - 1, "t": 2**32 - 1, "s": "é\n", "n": None, "l": [1, {"x": 2.5}]}
    keys = clustered(len(ids), 3)
    points = [
        models.PointStruct(id=each, vector=key, payload=payload)
        for each, key in zip(ids, keys.tolist(), strict=True)
    ]
    result = client.upsert(name, points, wait=True)
    assert result.status == models.UpdateStatus.COMPLETED
    found = {p.id: p for p in client.retrieve(name, ids, with_vectors=True)}
    assert set(found) == set(ids)
    for each, key in zip(ids, keys, strict=True):
        assert found[each].payload == payload
        assert np.array_equal(np.asarray(found[each].vector, np.float32), key)
    assert client.retrieve(name, [7], with_payload=False) == []
    with refusal(400, "Wrong input"):
        client.retrieve(name, [-1])
    with refusal(400, "Wrong input"):
        client.delete(name, models.PointIdsList(points=["no uuid"]), wait=True)


def test_upsert_replaces_whole_points(client: QdrantClient, name: str) -> None:
    create(client, name)
    put(client, name, clustered(10, 1))
    put(client, name, clustered(5, 2), first=5, token=100)
    assert client.count(name).count == 10
    found = client.retrieve(name, [4, 5], with_vectors=True)
    assert [point.payload and point.payload["t"] for point in found] == [4, 105]
    assert np.array_equal(np.asarray(found[1].vector, np.float32), clustered(5, 2)[0])


def test_part_of_the_payload(client: QdrantClient, name: str) -> None:
    create(client, name)
    put(client, name, clustered(3, 1))
    cases: list[tuple[Any, Any]] = [
        (True, {"d": 0, "t": 1}),
        (False, None),
        (["t"], {"t": 1}),
        (models.PayloadSelectorExclude(exclude=["t"]), {"d": 0}),
    ]
    for wanted, expected in cases:
        (read,) = client.retrieve(name, [1], with_payload=wanted)
        (scrolled,), _ = client.scroll(name, limit=1, offset=1, with_payload=wanted)
        hit = client.query_points(name, [0.0] * DIMENSION, limit=3, with_payload=wanted).points
        assert read.payload == scrolled.payload == expected
        assert next(point for point in hit if point.id == 1).payload == expected
        assert read.vector is scrolled.vector is hit[0].vector is None


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"id": 2, "vector": [1.0] * 15}, "expected dim: 16, got 15"),
        ({"id": 2, "vector": []}, "expected dim: 16, got 0"),
        ({"id": 2, "vector": ["1.0"] * 16}, "Wrong input"),
        ({"id": 2, "vector": [None] * 16}, "Wrong input"),
        ({"id": 2, "vector": [[1.0] * 16] * 16}, "Wrong input"),
        ({"id": 2, "vector": {"other": [1.0] * 16}}, "one unnamed vector"),
        ({"id": -2, "vector": [1.0] * 16}, "Wrong input"),
        ({"id": 2**64, "vector": [1.0] * 16}, "Wrong input"),
        ({"id": 2.5, "vector": [1.0] * 16}, "Format error in JSON body"),
        ({"id": "two", "vector": [1.0] * 16}, "Wrong input"),
        ({"id": 2}, "Format error in JSON body"),
        ({"id": 2, "vector": [1.0] * 16, "colour": "red"}, "Format error in JSON body"),
        ({"id": 2, "vector": [1.0] * 16, "payload": [1]}, "Format error in JSON body"),
        ("point", "Format error in JSON body"),
    ],
)
def test_bad_point_spoils_its_request_only(
    http: httpx.Client, client: QdrantClient, name: str, point: Any, words: str
) -> None:
    create(client, name)
    good = {"id": 1, "vector": [1.0] * DIMENSION, "payload": {"d": 1}}
    reply = http.put(f"/collections/{name}/points?wait=true", json={"points": [good, point]})
    assert reply.status_code == 400
    assert words in reply.json()["status"]["error"]
    assert client.count(name).count == 0
    assert http.put(f"/collections/{name}/points", json={"points": [good]}).status_code == 200
    assert client.count(name).count == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"{}", b'{"points": 1}', b'{"batch": 1}', b'{"points": [], "x": 1}'),
        *(b'{"batch": {"ids": [1], "vectors": []}}', b'{"points":[{"id":1,"vector":[NaN]}]}'),
    ],
)
def test_malformed_upsert_is_refused(
    http: httpx.Client, client: QdrantClient, name: str, body: bytes
) -> None:
    create(client, name, dimension=1)
    assert http.put(f"/collections/{name}/points", content=body).status_code == 400
    assert client.count(name).count == 0


def test_insert_only_and_conditional_upserts(client: QdrantClient, name: str) -> None:
    create(client, name)
    put(client, name, clustered(2, 1))
    new = [
        models.PointStruct(id=i, vector=[9.0] * DIMENSION, payload={"d": 9, "t": 9}) for i in (1, 2)
    ]
    client.upsert(name, new, wait=True, update_mode=models.UpdateMode.INSERT_ONLY)
    assert held(client, name) == {0: {"d": 0, "t": 0}, 1: {"d": 0, "t": 1}, 2: {"d": 9, "t": 9}}
    new[0].payload = new[1].payload = {"d": 7, "t": 7}
    condition = models.Filter(
        must=[models.FieldCondition(key="d", match=models.MatchValue(value=9))]
    )
    client.upsert(name, new, wait=True, update_filter=condition)
    assert held(client, name) == {0: {"d": 0, "t": 0}, 1: {"d": 0, "t": 1}, 2: {"d": 7, "t": 7}}


def test_scroll_pages_come_by_id(client: QdrantClient, name: str) -> None:
    create(client, name)
    ids = np.random.default_rng(0).permutation(500) * 3
    points = [models.PointStruct(id=int(i), vector=[0.0] * DIMENSION) for i in ids]
    client.upsert(name, points, wait=True)
    pages, offset = [], None
    while True:
        page, offset = client.scroll(name, limit=137, offset=offset)
        pages.append([point.id for point in page])
        if offset is None:
            break
        assert offset == 3 * sum(map(len, pages))
    assert [len(page) for page in pages] == [137, 137, 137, 89]
    assert [each for page in pages for each in page] == sorted(ids.tolist())


def test_payload_indexes_come_and_go(client: QdrantClient, name: str) -> None:
    create(client, name)
    put(client, name, clustered(30, 1))
    schema = client.get_collection(name).payload_schema
    assert schema["d"].data_type == models.PayloadSchemaType.INTEGER
    assert schema["d"].points == 30
    client.create_payload_index(
        name, "t", models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER), wait=True
    )
    assert set(client.get_collection(name).payload_schema) == {"d", "t"}
    client.delete_payload_index(name, "d", wait=True)
    assert set(client.get_collection(name).payload_schema) == {"t"}


# -- at once -----------------------------------------------------------------------------------


def test_many_at_once(client: QdrantClient, name: str) -> None:
    """Writers, readers, and others who make and drop collections: no error, every point there."""
    create(client, name, threshold=10)  # indexes are built meanwhile, too
    keys, stop = clustered(6000, 8), threading.Event()

    def write(part: int) -> None:
        for start in range(part * 1500, part * 1500 + 1500, 50):
            put(client, name, keys[start : start + 50], start)
            client.delete(name, models.PointIdsList(points=[start]), wait=True)

    def read() -> int:
        rounds = 0
        while not stop.is_set():
            hits = client.query_points(name, keys[rounds].tolist(), limit=10).points
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores)
            client.count(name)
            rounds += 1
        return rounds

    def make_and_drop() -> None:
        while not stop.is_set():
            create(client, f"{name}.other")
            put(client, f"{name}.other", keys[:20])
            assert client.delete_collection(f"{name}.other")

    with ThreadPoolExecutor(7) as pool:
        others: list[Future[Any]] = [
            pool.submit(read),
            pool.submit(read),
            pool.submit(make_and_drop),
        ]
        try:
            list(pool.map(write, range(4)))
        finally:
            stop.set()
        assert all(other.result() != 0 for other in others)
    assert sorted(held(client, name)) == [i for i in range(6000) if i % 50]
