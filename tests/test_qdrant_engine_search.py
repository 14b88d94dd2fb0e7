"""Searches and filters through the embedded engine's REST front, against brute force."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests import qdrant_engine_support as support
from tests.qdrant_engine_support import (
    DIMENSION,
    Engine,
    clustered,
    create,
    fill,
    held,
    index,
    nearest,
    put,
)

engine, client = support.engine, support.client
name, http = support.name, support.http


def test_distance_is_the_root(client: QdrantClient, name: str) -> None:
    create(client, name, dimension=1)
    put(client, name, np.arange(4, dtype=np.float32)[:, None])
    hits = client.query_points(name, [0.0], limit=9).points
    assert [(hit.id, hit.score) for hit in hits] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    near = client.query_points(name, [0.0], limit=9, score_threshold=2.5).points
    assert [hit.id for hit in near] == [0, 1, 2]
    later = client.query_points(name, [0.0], limit=2, offset=1, with_vectors=True).points
    assert [(hit.id, hit.vector) for hit in later] == [(1, [1.0]), (2, [2.0])]


def test_batch_answers_each_query_in_order(client: QdrantClient, name: str) -> None:
    create(client, name)
    keys = clustered(600, 1)
    fill(client, name, keys)
    requests = [
        models.QueryRequest(query=key, limit=3 + i, with_payload=["t"])
        for i, key in enumerate(clustered(20, 2).tolist())
    ]
    found = client.query_batch_points(name, requests)
    for i, (each, query) in enumerate(zip(found, clustered(20, 2), strict=True)):
        assert [point.id for point in each.points] == nearest(keys, query, 3 + i)
        assert all(point.payload == {"t": point.id} for point in each.points)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"query": [1.0]}, 400, "expected dim: 16, got 1"),
        ({"query": {"nearest": ["a"] * 16}}, 400, "Wrong input"),
        ({"query": 5}, 400, "by a vector only"),
        ({"query": [1.0] * 16, "using": "other"}, 400, "Not existing vector name error: other"),
        ({"query": [1.0] * 16, "limit": 0}, 422, "limit"),
        ({"query": [1.0] * 16, "colour": 1}, 400, "Format error"),
        ({"query": [1.0] * 16, "prefetch": []}, 400, "does not offer `prefetch`"),
        ({"query": [1.0] * 16, "filter": {"must": [{"key": "d"}]}}, 422, "condition"),
        ({"query": [1.0] * 16, "filter": {"must": [{"key": "d", "matches": 1}]}}, 400, "Format"),
        (
            {"query": [1.0] * 16, "filter": {"must": [{"key": "d", "match": {"text": "a"}}]}},
            400,
            "does not offer MatchText",
        ),
    ],
)
def test_bad_search_is_refused(
    http: httpx.Client, client: QdrantClient, name: str, body: Any, status: int, words: str
) -> None:
    create(client, name)
    put(client, name, clustered(3, 1))
    batch = {"searches": [{"query": [0.0] * DIMENSION}, body]}
    for path, sent in (("query", body), ("query/batch", batch)):
        reply = http.post(f"/collections/{name}/points/{path}", json=sent)
        assert reply.status_code == status
        assert words in reply.json()["status"]["error"]


def field(**how: Any) -> models.FieldCondition:
    return models.FieldCondition(key="d", **how)


def any_of(*values: int) -> models.FieldCondition:
    return field(match=models.MatchAny(any=list(values)))


FILTERS: dict[str, tuple[models.Filter, Any]] = {
    "value": (
        models.Filter(must=[field(match=models.MatchValue(value=3))]),
        lambda i: i // 100 == 3,
    ),
    "bare": (models.Filter(must=any_of(3)), lambda i: i // 100 == 3),
    "any": (models.Filter(must=[any_of(1, 5, 99)]), lambda i: np.isin(i // 100, [1, 5])),
    "many": (models.Filter(must=[any_of(*range(1, 3000))]), lambda i: i // 100 >= 1),
    "none of any": (models.Filter(must=[any_of()]), lambda i: i < 0),
    "except": (
        models.Filter(must=[field(match=models.MatchExcept(**{"except": [0, 2]}))]),
        lambda i: ~np.isin(i // 100, [0, 2]),
    ),
    "must not": (models.Filter(must_not=[any_of(0, 4)]), lambda i: ~np.isin(i // 100, [0, 4])),
    "should": (
        models.Filter(should=[any_of(2), field(range=models.Range(gte=8, lt=10))]),
        lambda i: np.isin(i // 100, [2, 8, 9]),
    ),
    "range": (
        models.Filter(must=[field(range=models.Range(gt=2, lte=4))]),
        lambda i: np.isin(i // 100, [3, 4]),
    ),
    "ids": (
        models.Filter(must=[models.HasIdCondition(has_id=[3, 700, 10**9])]),
        lambda i: np.isin(i, [3, 700]),
    ),
    "nested": (
        models.Filter(
            must=[any_of(1, 2, 3)],
            must_not=[models.Filter(must=[any_of(2), models.HasIdCondition(has_id=[250])])],
        ),
        lambda i: np.isin(i // 100, [1, 2, 3]) & (i != 250),
    ),
    "at least": (
        models.Filter(
            min_should=models.MinShould(conditions=[any_of(1, 2), any_of(2, 3)], min_count=2)
        ),
        lambda i: i // 100 == 2,
    ),
    "empty": (
        models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="d"))]),
        lambda i: i < 0,
    ),
}


@pytest.fixture(scope="module", params=["unindexed", "indexed"])
def filtered(engine: Engine, request: pytest.FixtureRequest) -> tuple[QdrantClient, str]:
    """2,000 points, d from 0 to 19."""
    client, name = engine[1], f"filtered-{request.param}"
    create(client, name, hnsw_config=models.HnswConfigDiff(full_scan_threshold=10))
    fill(client, name, clustered(2000, 5))
    if request.param == "indexed":
        assert index(client, name).indexed_vectors_count == 2000
    return client, name


@pytest.mark.parametrize("what", FILTERS)
def test_filters_equal_brute_force(filtered: tuple[QdrantClient, str], what: str) -> None:
    client, name = filtered
    given, passes = FILTERS[what]
    ids = np.arange(2000)[passes(np.arange(2000))]
    assert sorted(held(client, name, scroll_filter=given)) == ids.tolist()
    assert client.count(name, given).count == len(ids)
    params = models.SearchParams(hnsw_ef=512)
    for query in clustered(5, 6):
        hits = client.query_points(
            name, query.tolist(), limit=32, query_filter=given, search_params=params
        ).points
        wanted = nearest(clustered(2000, 5), query, 32, ids)
        assert len(hits) == len(wanted)
        assert len({hit.id for hit in hits} & set(wanted)) >= 0.95 * len(wanted)


def test_exact_search_passes_by_the_index(filtered: tuple[QdrantClient, str]) -> None:
    client, name = filtered
    exact = models.SearchParams(exact=True)
    for query in clustered(10, 7):
        hits = client.query_points(name, query.tolist(), limit=100, search_params=exact).points
        assert [hit.id for hit in hits] == nearest(clustered(2000, 5), query, 100)


@pytest.mark.parametrize("what", ["ids", "value", "many", "nested", "must not"])
def test_delete(client: QdrantClient, name: str, what: str) -> None:
    create(client, name)
    put(client, name, clustered(1000, 5))
    given, passes = FILTERS[what]
    if what == "ids":
        client.delete(name, models.PointIdsList(points=[3, 700, 10**9]), wait=True)
    else:
        client.delete(name, models.FilterSelector(filter=given), wait=True)
    left = np.arange(1000)[~passes(np.arange(1000))].tolist()
    assert sorted(held(client, name)) == left
    assert client.get_collection(name).points_count == len(left)


@pytest.mark.parametrize("storage", ["float16", "uint8", "int8"])
def test_other_ways_to_keep_vectors(client: QdrantClient, name: str, storage: str) -> None:
    keys, queries = clustered(2000, 5), clustered(20, 6)
    params = models.SearchParams(hnsw_ef=256)
    if storage == "uint8":
        keys, queries = (np.clip(each * 16 + 128, 0, 255).round() for each in (keys, queries))
        create(client, name, datatype=models.Datatype.UINT8)
    elif storage == "float16":
        create(client, name, datatype=models.Datatype.FLOAT16)
    else:
        config = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        create(client, name, quantization_config=models.ScalarQuantization(scalar=config))
        params.quantization = models.QuantizationSearchParams(rescore=True, oversampling=2.0)
    fill(client, name, keys)
    assert index(client, name).indexed_vectors_count == 2000
    found = 0
    for query in queries:
        hits = client.query_points(name, query.tolist(), limit=32, search_params=params).points
        found += len({hit.id for hit in hits} & set(nearest(keys, query, 32)))
    assert found >= 0.97 * 32 * len(queries)
