"""Indexes of the embedded engine: built beside the collection, while it is read and written."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from qdrant_client import models

from knnlm_store_qdrant.engine.collection import Collection
from knnlm_store_qdrant.engine.node import Node
from knnlm_store_qdrant.engine.settings import checked
from tests.qdrant_engine_support import (
    DIMENSION,
    builders,
    clustered,
    create,
    files,
    fill,
    gone,
    held,
    index,
    kill,
    nearest,
    opened,
    put,
    until,
    until_green,
)


def test_writes_during_a_build_are_in_the_index(tmp_path: Path) -> None:
    """And searches go on meanwhile, quickly: nobody waits for the build."""
    keys, n = clustered(6000, 3), 5000
    with opened(tmp_path) as (_, client):
        create(client, "x", hnsw_config=models.HnswConfigDiff(ef_construct=400, m=32))
        fill(client, "x", keys[:n])
        assert client.get_collection("x").status == models.CollectionStatus.GREEN
        client.update_collection(
            "x", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=200)
        )
        until(lambda: len(files(tmp_path)) == 2, "a copy to build on")
        longest, writes = 0.0, 0
        while client.get_collection("x").status == models.CollectionStatus.YELLOW and writes < 100:
            began = time.monotonic()
            put(client, "x", keys[n + 10 * writes : n + 10 * writes + 10], n + 10 * writes)
            client.delete("x", models.PointIdsList(points=[writes]), wait=True)
            hits = client.query_points("x", keys[writes + 1].tolist(), limit=1).points
            assert hits[0].id == writes + 1
            longest, writes = max(longest, time.monotonic() - began), writes + 1
        assert writes > 5
        assert longest < 2
        info = until_green(client, "x")
        there = set(range(writes, n + 10 * writes))
        assert set(held(client, "x")) == there
        assert info.points_count == len(there)
        assert info.indexed_vectors_count is not None
        assert info.indexed_vectors_count >= n - writes
        assert len(files(tmp_path)) == 1


def test_index_and_settings_outlive_a_restart(tmp_path: Path) -> None:
    keys = clustered(3000, 4)
    with opened(tmp_path) as (_, client):
        create(client, "x", datatype=models.Datatype.FLOAT16, metadata={"a": 1})
        fill(client, "x", keys)
        index(client, "x")
        action = models.CreateAlias(collection_name="x", alias_name="y")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=action)])
        before = client.get_collection("x")
    with opened(tmp_path) as (_, client):
        assert client.get_collection("y") == before
        assert before.indexed_vectors_count == 3000
        hits = client.query_points("y", keys[7].tolist(), limit=10).points
        assert [hit.id for hit in hits] == nearest(keys, keys[7], 10)


def test_deleted_points_give_their_space_back(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, client):
        hnsw = models.HnswConfigDiff(m=4, ef_construct=8)
        create(client, "x", threshold=1, dimension=256, hnsw_config=hnsw)
        fill(client, "x", clustered(3000, 5, 256))
        until_green(client, "x")
        before = on_disk(tmp_path)
        client.delete("x", models.PointIdsList(points=list(range(2500))), wait=True)
        assert client.get_collection("x").status == models.CollectionStatus.YELLOW
        until_green(client, "x")
        assert sorted(held(client, "x")) == list(range(2500, 3000))
        assert on_disk(tmp_path) < before - 2_000_000


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("segments/**/*"))


def test_failed_build_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as (endpoint, client):
        create(client, "x", hnsw_config=models.HnswConfigDiff(ef_construct=400, m=32))
        fill(client, "x", clustered(3000, 6))
        client.update_collection(
            "x", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
        )
        until(lambda: builders(endpoint), "builder")
        os.kill(builders(endpoint)[0], signal.SIGKILL)
        until(lambda: client.get_collection("x").status == models.CollectionStatus.RED, "red")
        told = client.get_collection("x").optimizer_status
        assert isinstance(told, models.OptimizersStatusOneOf1)
        assert "building the index failed with status -9" in told.error
        assert client.count("x").count == 3000
        assert index(client, "x").indexed_vectors_count == 3000


def test_kill_while_an_index_is_built(tmp_path: Path) -> None:
    keys = clustered(4000, 2)
    with opened(tmp_path) as (endpoint, client):
        create(client, "x", hnsw_config=models.HnswConfigDiff(ef_construct=400, m=32))
        fill(client, "x", keys)
        client.update_collection(
            "x", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
        )
        until(lambda: len(files(tmp_path)) == 2, "a copy to build on")
        put(client, "x", keys[:10], 4000)
        kill(endpoint)
        endpoint.restart_if_dead()
        assert client.count("x").count == 4010
        assert until_green(client, "x").indexed_vectors_count == 4010
        assert len(files(tmp_path)) == 1


def test_build_ends_with_the_engine(tmp_path: Path) -> None:
    with opened(tmp_path) as (endpoint, client):
        create(client, "x", hnsw_config=models.HnswConfigDiff(ef_construct=800, m=64))
        fill(client, "x", clustered(8000, 6))
        client.update_collection(
            "x", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
        )
        until(lambda: builders(endpoint), "builder")
        (builder,) = builders(endpoint)
        until(lambda: os.getpriority(os.PRIO_PROCESS, builder) > 0, "work")
        kill(endpoint)
        assert gone(builder, 1)


def test_collection_dropped_while_its_index_is_built(tmp_path: Path) -> None:
    """At any moment of it; the next one's index is built all the same."""
    with opened(tmp_path) as (_, client):
        for number in range(4):
            create(client, f"x{number}")
            fill(client, f"x{number}", clustered(1000, 6))
            client.update_collection(
                f"x{number}", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
            )
            time.sleep(0.1 * number)
            client.delete_collection(f"x{number}")
        create(client, "y")
        fill(client, "y", clustered(1000, 2))
        assert index(client, "y").indexed_vectors_count == 1000


class Panic(BaseException):
    """What the engine raises where it has a bug: no Exception."""


@pytest.mark.parametrize("work", ["tidy", "build_if_due"])
def test_a_panic_in_the_background_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    tended = Counter[str]()

    def panic(collection: Collection) -> None:
        tended[collection.name] += 1
        if collection.name == "a":
            raise Panic("index out of bounds")

    monkeypatch.setattr(Collection, work, panic)
    vectors = models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID)
    node = Node(tmp_path / "node", os.getpid(), 0)
    for name in ("a", "b"):
        node.create(name, checked(models.CreateCollection(vectors=vectors)))
    node.start()
    until(lambda: tended["b"] > 1, "second look at the other one")
    states = [node.get(name).info() for name in ("a", "b")]
    node.close()
    assert [state["status"] for state in states] == ["red", "green"]
    assert states[0]["optimizer_status"] == {"error": "Panic: index out of bounds"}
