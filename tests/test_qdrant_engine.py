"""The embedded engine's REST front, driven by the unmodified qdrant-client: service and names."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models

from tests import qdrant_engine_support as support
from tests.qdrant_engine_support import (
    DIMENSION,
    Engine,
    clustered,
    create,
    put,
    refusal,
)

engine, client = support.engine, support.client
name, http = support.name, support.http


# -- service -----------------------------------------------------------------------------------


def test_probes_ask_for_no_key(engine: Engine) -> None:
    url = engine[0].url
    assert "qdrant" in httpx.get(url, trust_env=False).json()["title"].lower()
    for probe in ("healthz", "readyz", "livez"):
        assert httpx.get(f"{url}/{probe}", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("headers", "words"),
    [({}, "Must provide an API key"), ({"api-key": "wrong"}, "Invalid API key")],
)
def test_all_else_asks_for_the_key(engine: Engine, headers: dict[str, str], words: str) -> None:
    for method, path in [("GET", "/collections"), ("PUT", "/collections/x"), ("GET", "/nothing")]:
        reply = httpx.request(method, engine[0].url + path, headers=headers, trust_env=False)
        assert reply.status_code == 401
        assert words in reply.json()["status"]["error"]


def test_key_is_on_no_command_line(engine: Engine) -> None:
    command = Path(f"/proc/{engine[0].pid}/cmdline")
    if not command.exists():
        pytest.skip("the system shows no command lines in /proc")
    assert b"knnlm_store_qdrant" in command.read_bytes()
    assert engine[0].api_key.encode() not in command.read_bytes()


def test_client_finds_the_version_compatible(client: QdrantClient) -> None:
    from qdrant_client.common.version_check import is_compatible

    assert is_compatible("1.20.0", client.info().version)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/collections/x/snapshots", 501),
        ("POST", "/collections/x/facet", 501),
        ("GET", "/cluster", 501),
        ("GET", "/telemetry", 501),
        ("GET", "/nonsense", 404),
    ],
)
def test_what_is_not_served_is_said(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert path in reply.json()["status"]["error"]


def test_connections_are_kept(http: httpx.Client) -> None:
    """Also after a refusal, and the next request is read from where it starts."""
    for path in ("/collections/none", "/collections", "/collections/none/points"):
        reply = http.post(path, content=b"{nonsense") if "points" in path else http.get(path)
        assert "connection" not in reply.headers
        assert reply.headers["content-length"] == str(len(reply.content))


def test_too_large_a_request(http: httpx.Client, client: QdrantClient, name: str) -> None:
    create(client, name)
    body = b" " * (32 << 20) + b"{}"
    reply = http.put(f"/collections/{name}/points", content=body)
    assert reply.status_code == 400
    assert "is larger than allowed (limit: 33554432 bytes)" in reply.json()["status"]["error"]
    assert http.get("/collections").status_code == 200


# -- collections -------------------------------------------------------------------------------


def test_collection_is_made_once_and_dropped_once(client: QdrantClient, name: str) -> None:
    assert not client.collection_exists(name)
    create(client, name)
    assert client.collection_exists(name)
    assert name in [each.name for each in client.get_collections().collections]
    with refusal(409, f"Wrong input: Collection `{name}` already exists!"):
        create(client, name)
    assert client.delete_collection(name)
    assert not client.delete_collection(name)
    assert not client.collection_exists(name)


def test_absent_collection_is_said_by_every_route(client: QdrantClient, name: str) -> None:
    missing = refusal(404, f"Not found: Collection `{name}` doesn't exist!")
    any_filter = models.Filter(must=[models.HasIdCondition(has_id=[1])])
    for call in (
        lambda: client.get_collection(name),
        lambda: client.update_collection(
            name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
        ),
        lambda: put(client, name, clustered(1, 0)),
        lambda: client.retrieve(name, [1]),
        lambda: client.query_points(name, [0.0] * DIMENSION),
        lambda: client.query_batch_points(name, [models.QueryRequest(query=[0.0])]),
        lambda: client.delete(name, models.FilterSelector(filter=any_filter)),
        lambda: client.count(name),
        lambda: client.scroll(name),
        lambda: client.create_payload_index(name, "d", models.PayloadSchemaType.INTEGER),
        lambda: client.delete_payload_index(name, "d"),
        lambda: client.get_collection_aliases(name),
    ):
        with missing:
            call()


@pytest.mark.parametrize("odd", ["a b", "ä/ö", "A" * 255, "a%2Fb", "..x", "CASE", "case"])
def test_any_name_will_do(client: QdrantClient, odd: str) -> None:
    create(client, odd)
    put(client, odd, clustered(3, 1))
    assert client.count(odd).count == 3
    assert odd in [each.name for each in client.get_collections().collections]


def test_options_are_told_again(client: QdrantClient, name: str) -> None:
    create(
        client,
        name,
        datatype=models.Datatype.FLOAT16,
        on_disk=True,
        on_disk_payload=False,
        shard_number=1,
        replication_factor=1,
        write_consistency_factor=1,
        hnsw_config=models.HnswConfigDiff(m=8, ef_construct=33),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        ),
    )
    config = client.get_collection(name).config
    vectors = config.params.vectors
    assert isinstance(vectors, models.VectorParams)
    assert (vectors.size, vectors.distance) == (DIMENSION, models.Distance.EUCLID)
    assert (vectors.datatype, vectors.on_disk) == (models.Datatype.FLOAT16, True)
    assert not config.params.on_disk_payload
    assert (config.params.shard_number, config.params.replication_factor) == (1, 1)
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (8, 33)
    assert config.optimizer_config.indexing_threshold == 0
    assert isinstance(config.quantization_config, models.ScalarQuantization)
    assert config.quantization_config.scalar.always_ram


def test_options_can_be_changed(client: QdrantClient, name: str) -> None:
    create(client, name, hnsw_config=models.HnswConfigDiff(m=8), metadata={"a": 1})
    client.update_collection(
        name,
        hnsw_config=models.HnswConfigDiff(ef_construct=44),
        optimizers_config=models.OptimizersConfigDiff(deleted_threshold=0.5),
        metadata={"b": 2},
    )
    config = client.get_collection(name).config
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (8, 44)
    assert config.optimizer_config.indexing_threshold == 0
    assert config.optimizer_config.deleted_threshold == 0.5
    assert config.metadata == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard_number": 2}, "one node: `shard_number` can only be 1"),
        ({"replication_factor": 3}, "one node: `replication_factor`"),
        ({"write_consistency_factor": 2}, "one node: `write_consistency_factor`"),
        ({"sharding_method": models.ShardingMethod.CUSTOM}, "`sharding_method`"),
        ({"sparse_vectors_config": {"s": models.SparseVectorParams()}}, "`sparse_vectors`"),
        ({"strict_mode_config": models.StrictModeConfig(enabled=True)}, "no strict mode"),
        (
            {
                "quantization_config": models.BinaryQuantization(
                    binary=models.BinaryQuantizationConfig()
                )
            },
            "scalar quantization only",
        ),
    ],
)
def test_more_than_a_node_can_is_refused(
    client: QdrantClient, name: str, options: dict[str, Any], words: str
) -> None:
    with refusal(400, words):
        create(client, name, **options)
    assert not client.collection_exists(name)


def test_named_vectors_are_refused(client: QdrantClient, name: str) -> None:
    vector = models.VectorParams(size=4, distance=models.Distance.EUCLID)
    with refusal(400, "one unnamed vector a point"):
        client.create_collection(name, vectors_config={"a": vector})


def test_collection_of_points_without_vectors(client: QdrantClient, name: str) -> None:
    client.create_collection(name, vectors_config={})
    client.create_payload_index(name, "group", models.PayloadSchemaType.KEYWORD, wait=True)
    text = "ä" * 1_000_000
    points = [
        models.PointStruct(id=str(uuid.UUID(int=i)), vector={}, payload={"group": f"g{i % 2}"})
        for i in range(5)
    ]
    points[3].payload = {"group": "g1", "value": text}
    client.upsert(name, points, wait=True)
    chosen = models.Filter(
        must=[models.FieldCondition(key="group", match=models.MatchValue(value="g1"))]
    )
    found, _ = client.scroll(name, chosen, limit=10)
    assert [point.id for point in found] == [str(uuid.UUID(int=i)) for i in (1, 3)]
    assert found[1].payload == {"group": "g1", "value": text}
    assert client.get_collection(name).status == models.CollectionStatus.GREEN


# -- aliases -----------------------------------------------------------------------------------


def pointing(alias: str, target: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=target, alias_name=alias)
    )


def removing(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def renaming(old: str, new: str) -> models.RenameAliasOperation:
    return models.RenameAliasOperation(
        rename_alias=models.RenameAlias(old_alias_name=old, new_alias_name=new)
    )


def aliases(client: QdrantClient, *names: str) -> dict[str, str]:
    found = [client.get_collection_aliases(name) for name in names] or [client.get_aliases()]
    return {a.alias_name: a.collection_name for each in found for a in each.aliases}


def test_alias_serves_as_a_name(client: QdrantClient, name: str) -> None:
    create(client, name)
    client.update_collection_aliases([pointing(f"{name}.a", name)])
    put(client, f"{name}.a", clustered(5, 1))
    assert client.collection_exists(f"{name}.a")
    assert client.count(f"{name}.a").count == client.count(name).count == 5
    assert not client.delete_collection(f"{name}.a")
    with refusal(400, "Alias with the same name already exists"):
        create(client, f"{name}.a")
    client.delete_collection(name)
    assert f"{name}.a" not in aliases(client)


def test_aliases_change_all_or_none(client: QdrantClient, name: str) -> None:
    for which in "12":
        create(client, name + which)
        create(client, name + which + ".records")
    first = {f"{name}a": f"{name}1", f"{name}a.records": f"{name}1.records"}
    client.update_collection_aliases([pointing(*pair) for pair in first.items()])
    mine = [f"{name}{end}" for end in ("1", "2", "1.records", "2.records")]
    assert aliases(client, *mine) == first
    with refusal(404, "doesn't exist"):
        client.update_collection_aliases(
            [removing(f"{name}a"), pointing(f"{name}b", f"{name}2"), pointing("c", "absent" + name)]
        )
    with refusal(404, "does not exists"):
        client.update_collection_aliases([removing(f"{name}a"), renaming("none", "b")])
    with refusal(409, "already exists"):
        client.update_collection_aliases([removing(f"{name}a"), pointing(f"{name}1", f"{name}2")])
    assert aliases(client, *mine) == first
    client.update_collection_aliases(
        [
            removing(f"{name}a"),
            pointing(f"{name}a", f"{name}2"),
            renaming(f"{name}a.records", f"{name}b"),
        ]
    )
    assert aliases(client, *mine) == {f"{name}a": f"{name}2", f"{name}b": f"{name}1.records"}
