"""Datastores in Milvus, and the server that the tests share."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusException

from knnlm_store.values import Entries, Float32, Location, Spec
from knnlm_store_milvus import MilvusBackend
from knnlm_store_milvus import lite as files
from tests.milvus_server import TOKEN, MilvusProcess, started
from tests.proxies import Moods, grpc_proxy
from tests.servers import MILVUS, elsewhere

DIMENSION = 8


@cache
def _shared_server() -> MilvusProcess:
    server = started()
    atexit.register(server.remove)
    return server


@pytest.fixture(scope="session")
def own_server() -> MilvusProcess:
    """The server of this session, with authorisation on; one for all modules."""
    return _shared_server()


@pytest.fixture(scope="module")
def milvus_root(request: pytest.FixtureRequest) -> Iterator[str]:
    """Place of a server, HOST:PORT: the one KNNLM_TEST_MILVUS_URI names, or one of our own."""
    with pytest.MonkeyPatch.context() as patch:
        root = elsewhere(MILVUS).partition("://")[2]
        if not root:
            root = request.getfixturevalue("own_server").root
            patch.setenv("KNNLM_MILVUS_TOKEN", TOKEN)
        yield root


@pytest.fixture(scope="module")
def milvus_uri(milvus_root: str) -> str:
    """The same as a URI, which says whether TLS is spoken there."""
    return elsewhere(MILVUS) or f"milvus://{milvus_root}"


@pytest.fixture
def lite(tmp_path: Path) -> Location:
    """A datastore in a file of Milvus Lite that is not there yet."""
    return Location("milvus", str(tmp_path / "file.db"), "law")


@contextmanager
def served(location: Location) -> Iterator[tuple[Location, Moods]]:
    """A datastore in a file of Milvus Lite as if on a server, behind a proxy."""
    path = Path(location.root)
    uri = files.acquire(path)
    try:
        with grpc_proxy(uri.removeprefix("http://")) as moods:
            yield Location("milvus", moods.address, location.name, network=True), moods
    finally:
        files.release(path)


def created(location: Location, spec: Spec | None = None) -> MilvusBackend:
    store = MilvusBackend.connect(location)
    store.create(spec or Spec(DIMENSION), {"manifest": b"m"})
    return store


def refuse_aliased(store: MilvusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client refuse to drop a collection that has aliases, as newer servers do."""
    client = store._connected()._client
    drop = client.drop_collection

    def refuse(name: str, **options: Any) -> None:
        if aliases := client.list_aliases(name)["aliases"]:
            raise MilvusException(
                65535,
                f"unable to drop the collection [{name}] because it has associated aliases"
                f" {aliases}, please remove all aliases before dropping the collection",
            )
        drop(name, **options)

    monkeypatch.setattr(client, "drop_collection", refuse)


def of_keys(keys: Float32, number: int = 1) -> Entries:
    n = len(keys)
    return Entries(
        keys,
        np.arange(n, dtype=np.int64),
        np.full(n, number, np.int64),
        np.arange(n, dtype=np.int64),
    )


def keys(n: int, seed: int = 0, dimension: int = DIMENSION) -> Float32:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)
