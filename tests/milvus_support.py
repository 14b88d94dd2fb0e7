"""Datastores in Milvus, and the server that the tests share."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from knnlm_store.values import Entries, Float32, Location, Spec
from knnlm_store_milvus import MilvusBackend
from tests.milvus_server import TOKEN, MilvusProcess, started

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
    """Place of a server: the one KNNLM_TEST_MILVUS_URI names (HOST:PORT), or one of our own."""
    with pytest.MonkeyPatch.context() as patch:
        root = os.environ.get("KNNLM_TEST_MILVUS_URI", "").removeprefix("milvus://").rstrip("/")
        if not root:
            root = request.getfixturevalue("own_server").root
            patch.setenv("KNNLM_MILVUS_TOKEN", TOKEN)
        yield root


@pytest.fixture
def lite(tmp_path: Path) -> Location:
    """A datastore in a file of Milvus Lite that is not there yet."""
    return Location("milvus", str(tmp_path / "file.db"), "law")


def created(location: Location, spec: Spec | None = None) -> MilvusBackend:
    store = MilvusBackend.connect(location)
    store.create(spec or Spec(DIMENSION), {"manifest": b"m"})
    return store


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
