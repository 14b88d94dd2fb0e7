"""What is particular to the Qdrant adapter, seen from both ends of the wire."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from knnlm_store.errors import StoreError, UsageError
from knnlm_store.values import DocumentFilter, Location
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import Endpoint
from tests import qdrant_support as support
from tests.qdrant_front import Front
from tests.qdrant_support import DIMENSION, Frugal, created, document, names_of, of_keys

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store


# -- requests ----------------------------------------------------------------------------------


def test_entries_go_in_parallel_batches_of_bytes(store: Frugal, front: Front) -> None:
    created(store)
    entries = document(2**62, 1000)
    slowly = threading.Event()
    front.before = lambda asked: slowly.wait(0.05) or True
    store.upsert(entries)
    writes = [a for a in front.log if a.line == "PUT /collections/law/points"]
    assert sum(len(a.json["batch"]["ids"]) for a in writes) == 1000
    assert max(len(a.body) for a in writes) <= Frugal.limits.sent
    assert min(len(a.body) for a in writes[:-1]) > Frugal.limits.sent / 4
    assert all("wait=true" in a.path for a in writes)
    assert 1 < front.most_at_once <= Frugal.limits.streams
    assert store.count() == 1000


def test_a_point_is_its_id_key_and_two_numbers(store: Frugal, vendor: QdrantClient) -> None:
    created(store, "float32")
    entries = document(2**62, 3)
    store.upsert(entries)
    points, _ = vendor.scroll("law", with_vectors=True)
    assert [point.id for point in points] == [2**62, 2**62 + 1, 2**62 + 2]
    assert [point.payload for point in points] == [{"d": 2**62, "t": t} for t in range(3)]
    np.testing.assert_array_equal([point.vector for point in points], entries.keys)


def test_payload_index_comes_before_data(store: Frugal, front: Front) -> None:
    created(store)
    store.upsert(document(1, 2))
    lines = front.lines()
    index = lines.index("PUT /collections/law/index")
    assert index < lines.index("PUT /collections/law/points")
    assert front.log[index].json == {"field_name": "d", "field_schema": "integer"}


def test_a_step_is_one_request(front: Front, vendor: QdrantClient) -> None:
    store = created(QdrantBackend.connect(front.location("law")))
    entries = document(5, 300)
    store.upsert(entries)
    front.log.clear()
    store.search(entries.keys[:64], 100, within=DocumentFilter.leaving_out([9]), timeout=20.0)
    (asked,) = front.log
    assert asked.line == "POST /collections/law/points/query/batch"
    assert "timeout=20" in asked.path
    assert len(asked.json["searches"]) == 64
    store.close()


def test_searches_are_split_past_the_limits(store: Frugal, front: Front) -> None:
    """By what is sent (queries and filter) and by what comes back (neighbours, keys)."""
    entries = document(5, 400)
    created(store, "float32").upsert(entries)
    within = DocumentFilter.leaving_out(np.arange(100, 1100))
    whole = store.search(entries.keys, 3)
    filtered = store.search(entries.keys[:10], 3, within=within)
    for array, other in (
        (whole.ids[:10], filtered.ids),
        (whole.distances[:10], filtered.distances),
    ):
        np.testing.assert_array_equal(array, other)
    assert (whole.ids[:, 0] == entries.ids).all()
    front.log.clear()
    with_keys = store.search(entries.keys[:20], 30, with_keys=True)
    assert len(front.log) > 2
    assert with_keys.keys is not None
    np.testing.assert_array_equal(with_keys.keys[:, 0], entries.keys[:20])
    assert all(len(a.body) <= Frugal.limits.sent for a in front.log)


@pytest.mark.parametrize(
    ("storage", "index", "k", "expected"),
    [
        ("float16", "hnsw", 10, {"hnsw_ef": 128}),
        ("float32", "hnsw", 1024, {"hnsw_ef": 2048}),
        ("float16", "exact", 10, {"exact": True}),
        (
            "int8",
            "hnsw",
            100,
            {"hnsw_ef": 200, "quantization": {"rescore": True, "oversampling": 2.0}},
        ),
    ],
)
def test_search_parameters(
    front: Front, store: Frugal, storage: str, index: str, k: int, expected: dict[str, Any]
) -> None:
    """They follow k, and how the datastore was made, which any other user of it knows too."""
    created(store, storage, index=index).upsert(document(1, 3))
    with_another = Frugal.connect(front.location("law"))
    with_another.search(document(1, 1).keys, k)
    assert front.log[-1].json["searches"][0]["params"] == expected
    with_another.close()


def test_queries_that_half_precision_cannot_hold(store: Frugal) -> None:
    """The server would make infinities of them; keys are read and compared here instead."""
    entries = of_keys(document(1, 200).keys * 1000, number=7)
    created(store).upsert(entries)
    store.upsert(of_keys(document(2, 50).keys * 1000, number=900))
    queries = entries.keys[:4].copy()
    queries[:, 0] = [70_000, -70_000, 1e8, 5]
    within = DocumentFilter.keeping([7, 8, 9, 10, 11])
    found = store.search(queries, 20, within=within, with_keys=True)
    true = ((queries[:, None].astype(float) - entries.keys.astype(np.float16)[None]) ** 2).sum(2)
    np.testing.assert_allclose(found.distances, np.sort(true, axis=1)[:, :20], rtol=1e-3)
    assert (found.documents == 7).all()
    assert found.keys is not None
    everywhere = store.search(queries, 300)
    assert (np.sort(everywhere.documents[:, :250]) == [7] * 200 + [900] * 50).all()
    assert (everywhere.tokens[:, 250:] == -1).all()
    assert store.search(queries, 3, within=DocumentFilter.keeping([])).tokens.max() == -1


# -- making ------------------------------------------------------------------------------------


def test_options_reach_the_server(store: Frugal, vendor: QdrantClient) -> None:
    """Asked of the server itself."""
    created(store, m="8", ef_construct="64", on_disk="true", on_disk_payload="false")
    config = vendor.get_collection("law").config
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (8, 64)
    assert config.optimizer_config.indexing_threshold == 0
    assert config.params.on_disk_payload is False
    vectors = config.params.vectors
    assert isinstance(vectors, models.VectorParams)
    assert vectors.on_disk is True
    assert vectors.datatype == models.Datatype.FLOAT16
    assert vectors.distance == models.Distance.EUCLID
    assert vectors.size == DIMENSION
    assert config.quantization_config is None


def test_int8_is_quantised_in_memory(store: Frugal, vendor: QdrantClient) -> None:
    created(store, "int8", shard_number="1", replication_factor="1", write_consistency_factor="1")
    config = vendor.get_collection("law").config
    assert isinstance(config.quantization_config, models.ScalarQuantization)
    assert config.quantization_config.scalar.always_ram is True
    assert config.quantization_config.scalar.type == models.ScalarType.INT8
    assert isinstance(config.params.vectors, models.VectorParams)
    assert config.params.vectors.on_disk is True


def test_exact_has_no_graph(store: Frugal, vendor: QdrantClient) -> None:
    created(store, index="exact").upsert(document(1, 400))
    assert vendor.get_collection("law").config.hnsw_config.m == 0
    assert store.build_index() is None
    assert store.describe_index() == "exact"
    assert vendor.get_collection("law").config.optimizer_config.indexing_threshold == 0


@pytest.mark.parametrize("option", ["shard_number", "replication_factor"])
def test_what_the_server_refuses_is_not_made(
    store: Frugal, vendor: QdrantClient, option: str
) -> None:
    """In its words: the embedded engine is one node."""
    with pytest.raises(StoreError, match=option):
        created(store, "float16", DIMENSION, **{option: "2"})
    assert names_of(vendor) == []
    created(store)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": "ivf"}, "index is hnsw or exact, not 'ivf'"),
        ({"m": "0"}, "m is a number from 1 on, not '0'"),
        ({"m": "many"}, "m is a number"),
        ({"shard_number": "-1"}, "shard_number is a number"),
        ({"on_disk": "yes"}, "on_disk is true or false, not 'yes'"),
        ({"index": "exact", "m": "8"}, "index=exact has none"),
        ({"colour": "red"}, "no option 'colour'"),
    ],
    ids=str,
)
def test_bad_options(store: Frugal, front: Front, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        created(store, "float16", DIMENSION, **options)
    assert front.log == []


def test_too_many_dimensions(store: Frugal) -> None:
    with pytest.raises(UsageError, match="65536 dimensions, not 65537"):
        created(store, dimension=65537)


# -- names and records -------------------------------------------------------------------------

ODD = ["law", "law.records", "law.records.records", ".", "..", "a b", "a~2Eb", 'x<>:"|?*', "ü/日本"]


def test_any_name(front: Front, vendor: QdrantClient) -> None:
    """Qdrant refuses many characters, and NAME.records is the other half of NAME."""
    stores = [created(QdrantBackend.connect(front.location(name))) for name in ODD]
    for number, each in enumerate(stores):
        each.put_records({"number": b"%d" % number})
    assert QdrantBackend.names(front.location("*")) == sorted(ODD)
    for number, name in enumerate(ODD):
        again = QdrantBackend.connect(front.location(name))
        assert again.get_records(["number"]) == {"number": b"%d" % number}
        again.drop()
        again.close()
    assert names_of(vendor) == []
    for each in stores:
        each.close()


@pytest.mark.parametrize("name", ["", "x" * 248, "é" * 50])
def test_names_that_cannot_be(front: Front, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a datastore on Qdrant"):
        QdrantBackend.connect(front.location(name))


def test_records_are_found_by_their_first_part(store: Frugal, front: Front) -> None:
    created(store).put_records({f"{kind}/{i}": b"x" for kind in "ab" for i in range(3)})
    front.log.clear()
    assert len(list(store.scan_records("a/"))) == 3
    (asked,) = front.log
    assert asked.json["filter"]["must"] == [{"key": "group", "match": {"value": "a/"}}]


def test_records_have_a_largest_size(store: Frugal) -> None:
    created(store).put_records({"v": b"before"})
    with pytest.raises(StoreError, match="'v' has 8,388,609 bytes; Qdrant keeps up to 8,388,608"):
        store.put_records({"v": bytes(2**23 + 1)})
    assert store.get_records(["v"]) == {"v": b"before"}
    store.put_records({"v": bytes(2**23)})
    assert store.get_records(["v"]) == {"v": bytes(2**23)}


def test_versions_and_size(store: Frugal, endpoint: Endpoint) -> None:
    created(store).upsert(document(1, 100))
    versions = store.versions()
    assert versions["qdrant-client"].count(".") == 2
    assert "qdrant-edge" in versions["server"]
    assert store.size() is None  # a server does not tell
    local = QdrantBackend.connect(Location("qdrant", str(endpoint.path), "law"))
    size = local.size()
    assert size is not None
    assert size > 100 * 2 * DIMENSION
    local.close()
