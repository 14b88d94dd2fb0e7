"""What only a real Milvus server can show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from pymilvus import MilvusClient

from knnlm_store.errors import (
    BackendUnavailable,
    KnnlmError,
    StoreError,
    StoreExists,
    StoreNotFound,
    UsageError,
)
from knnlm_store.values import Freshness, Location, Spec
from knnlm_store_milvus import MilvusBackend, entries
from knnlm_store_milvus.indexes import LARGEST_K
from tests.milvus_server import TOKEN, MilvusProcess
from tests.milvus_support import (
    DIMENSION,
    created,
    keys,
    milvus_root,
    of_keys,
    own_server,
    refuse_aliased,
)

__all__ = ["milvus_root", "own_server"]


@pytest.fixture
def server(milvus_root: str) -> Iterator[Location]:
    """A name on the server, dropped in the end."""
    location = Location("milvus", milvus_root, f"law_{time.time_ns()}", network=True)
    yield location
    store = MilvusBackend.connect(location)
    if store.exists():
        store.drop()
    store.close()


def test_float16_is_right_or_refused(server: Location) -> None:
    """Milvus 2.3.5 takes such keys but answers single small queries with noise."""
    store = MilvusBackend.connect(server)
    before = store._connected().names()
    refusal = None
    try:
        store.create(Spec(DIMENSION, "float16"), {})
    except UsageError as error:
        refusal = error
    if refusal is not None:
        assert "float16" in str(refusal)
        assert "float32" in refusal.hint
        assert not store.exists()
        assert store._connected().names() == before
    else:
        store.upsert(of_keys(keys(50)))
        found = store.search(keys(50), 1).tokens.ravel()
        assert found.tolist() == list(range(50))
    store.close()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"m": "24", "ef_construction": "100"}, "HNSW (M 24, efConstruction 100)"),
        ({"index": "ivf_flat", "shards": "2"}, "IVF_FLAT (nlist 8192)"),
    ],
    ids=["hnsw", "ivf_flat"],
)
def test_index(server: Location, options: dict[str, str], name: str) -> None:
    """It is the one asked for, covers everything, and finds what brute force finds."""
    store = created(server, Spec(DIMENSION, options=options))
    held = keys(4000)
    store.upsert(of_keys(held))
    done = store.build_index()
    assert done is not None
    assert done.startswith(f"built {name} over 4,000 entries")
    assert store.build_index() is None
    assert store.describe_index() == name
    index = store._connected().index(server.name, "key")
    assert index is not None
    assert index["index_type"] == name.split()[0]
    assert int(index["indexed_rows"]) == 4000
    queries = keys(8, seed=1)
    true = ((queries[:, None] - held) ** 2).sum(axis=2)
    for k in (10, 1024):
        near = np.argpartition(true, k, axis=1)[:, :k]
        for freshness in Freshness:
            found = store.search(queries, k, freshness=freshness)
            right = [len(np.intersect1d(a, b)) for a, b in zip(found.tokens, near, strict=True)]
            assert sum(right) / (8 * k) > 0.97
    store.close()


def test_largest_k(server: Location) -> None:
    """As many neighbours as Milvus gives at all, in an index of little more keys that is in use."""
    store = created(server)
    held, queries = keys(17_000), keys(2, seed=1)
    store.upsert(of_keys(held))
    assert store.build_index() is not None
    with store._connected().calling() as (client, timeout):
        segments = client.list_loaded_segments(server.name, timeout=timeout)
    assert sum(segment.num_rows for segment in segments if segment.index_id) == 17_000
    found = store.search(queries, LARGEST_K)
    assert found.tokens.shape == (2, 16_384)
    true = ((queries[:, None] - held) ** 2).sum(axis=2)
    near = np.argpartition(true, LARGEST_K, axis=1)[:, :LARGEST_K]
    for ids, expected in zip(found.tokens, near, strict=True):
        assert len(np.intersect1d(ids, expected)) > 0.99 * LARGEST_K
    own = np.take_along_axis(true, found.tokens, axis=1)
    np.testing.assert_allclose(found.distances, own, rtol=1e-4, atol=1e-4)
    store.close()


def test_foreign_collection_is_left_alone(server: Location) -> None:
    """Neither taken over nor listed, nor dropped, nor replaced by an alias."""
    store, other = MilvusBackend.connect(server), replace(server, name=f"{server.name}_b")
    held = store._connected()
    held.create(server.name, entries.fields(Spec(DIMENSION)), "", 1)
    assert not store.exists()
    with pytest.raises(StoreExists, match="a Milvus collection that knnlm-store did not make"):
        store.create(Spec(DIMENSION), {})
    with pytest.raises(StoreNotFound):
        store.drop()
    ours = created(other)
    with pytest.raises(StoreExists):
        ours.set_alias(server.name)
    assert server.name in held.names()
    assert server.name not in MilvusBackend.names(server)
    held.drop(server.name)
    ours.drop()
    for opened in (store, ours):
        opened.close()


def test_replicas_without_nodes_are_refused(server: Location) -> None:
    store = MilvusBackend.connect(server)
    with pytest.raises(UsageError, match="64 replicas"):
        store.create(Spec(DIMENSION, options={"replicas": "64"}), {})
    assert not store.exists()
    assert not [name for name in store._connected().names() if server.name in name]
    store.close()


def test_more_than_a_message_holds(server: Location) -> None:
    """70 MB of keys in one upsert; gRPC takes 64 MiB at the server."""
    store = created(server, Spec(4096, options={"index": "exact"}))
    held = keys(4300, dimension=4096)
    store.upsert(of_keys(held))
    assert store.count() == 4300
    found = store.search(held[:2], 100, with_keys=True)
    assert found.tokens[:, 0].tolist() == [0, 1]
    assert found.keys is not None
    np.testing.assert_array_equal(found.keys[:, 0], held[:2])
    store.close()


def test_released_collection_is_loaded_again(server: Location) -> None:
    store = created(server)
    store.upsert(of_keys(keys(5)))
    with store._connected().calling() as (client, timeout):
        client.release_collection(server.name, timeout=timeout)
    for _ in range(2):
        with suppress(BackendUnavailable):
            store.search(keys(1), 1)
    assert store.search(keys(1), 5).tokens[0].tolist() != [-1] * 5
    store.close()


def test_aliases_go_with_their_datastore(server: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave their names free; a server that would refuse to drop what has some is obeyed."""
    store, other = created(server), created(replace(server, name=f"{server.name}_b"))
    refuse_aliased(store, monkeypatch)
    alias, kept = f"{server.name}_today", f"{server.name}_kept"
    store.set_alias(alias)
    other.set_alias(kept)
    store.drop()
    assert not store.exists()
    found = MilvusBackend.aliases(server)
    assert alias not in found
    assert found[kept] == f"{server.name}_b"
    other.set_alias(alias)  # also as an alias again
    through = MilvusBackend.connect(replace(server, name=alias))
    assert through.count() == 0
    other.drop()
    assert kept not in MilvusBackend.aliases(server)
    for opened in (store, other, through):
        opened.close()


def test_closing_leaves_others_alone(server: Location) -> None:
    store = created(server)
    second, third = MilvusBackend.connect(server), MilvusBackend.connect(server)
    assert (second.count(), third.count()) == (0, 0)
    second.close()
    store.close()
    third.upsert(of_keys(keys(5)))
    assert third.count() == 5
    third.close()


def test_database_of_its_own(server: Location) -> None:
    default = created(server)
    database = f"{server.name}_db"
    with default._connected().calling() as (client, timeout):
        assert isinstance(client, MilvusClient)
        client.create_database(database, timeout=timeout)
    there = replace(server, root=f"{server.root}/{database}")
    assert MilvusBackend.names(there) == []
    other = created(there)
    other.upsert(of_keys(keys(5)))
    assert (default.count(), other.count()) == (0, 5)
    assert MilvusBackend.names(there) == [server.name]
    other.drop()
    other.close()
    with default._connected().calling() as (client, timeout):
        client.drop_database(database, timeout=timeout)
    with pytest.raises(StoreError, match="no database"):
        MilvusBackend.names(there)
    assert default.exists()
    default.close()


def test_wrong_token_is_named_as_a_cause(
    own_server: MilvusProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location("milvus", own_server.root, "law", network=True)
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", "root:guessed")
    with pytest.raises(KnnlmError, match="token") as told:
        MilvusBackend.connect(location)
    assert "guessed" not in str(told.value) + told.value.hint
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", TOKEN)
    MilvusBackend.connect(location).close()


def test_deadline_is_kept(server: Location) -> None:
    store = created(server)
    store.upsert(of_keys(keys(1000)))
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="in time"):
        store.search(keys(500), 1000, timeout=0.01)
    assert time.monotonic() - began < 2
    store.close()


def test_killed_server_loses_nothing(own_server: MilvusProcess) -> None:
    """Errors at once while it is away; then the same object finds all that was acknowledged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNNLM_MILVUS_TOKEN", TOKEN)
        store = created(Location("milvus", own_server.root, "survivor", network=True))
    port = own_server.port
    store.upsert(of_keys(keys(300)))
    store.put_records({"large": b"x" * 100_000})
    own_server.kill()
    for call in (lambda: store.search(keys(1), 1), lambda: store.upsert(of_keys(keys(9), 2))):
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            call()
        assert time.monotonic() - began < 5
    own_server.start()
    assert own_server.port == port
    end = time.monotonic() + 120
    while True:
        try:
            assert store.count([1]) == 300
            break
        except BackendUnavailable:
            assert time.monotonic() < end
            time.sleep(1)
    assert store.get_records(["large"]) == {"large": b"x" * 100_000}
    store.upsert(of_keys(keys(9), 1000))
    assert store.count() == 309
    store.drop()
    store.close()
