"""Qdrant servers of the tests: the client's local mode, and a front before the embedded engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from knnlm_store.values import Entries, Float32, Location, Spec
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import Endpoint, acquire
from knnlm_store_qdrant.entries import Limits
from knnlm_store_qdrant.server import Server
from tests.qdrant_front import Front, fronted

DIMENSION = 16


class LocalMode:
    """`QdrantClient(":memory:")` for several threads, refusing in the words of a server."""

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                try:
                    return call(*args, **kwargs)
                except ValueError as error:
                    raise refusal(str(error)) from error

        return guarded

    def close(self) -> None:
        """Live on: other objects of the test have the same client."""


def refusal(words: str) -> UnexpectedResponse:
    """What the server answers where local mode raises ValueError."""
    status = 404 if "not found" in words else 409 if "already exists" in words else 400
    body = json.dumps({"status": {"error": words}}).encode()
    return UnexpectedResponse(status, "", body, httpx.Headers())


class LocalBackend(QdrantBackend):
    """The adapter with a client of local mode."""

    server: ClassVar[LocalMode]

    @classmethod
    def _reach(cls, location: Location) -> Server:
        return Server("memory", cast(QdrantClient, cls.server))


class Frugal(QdrantBackend):
    """Sends and asks for little at once, and does not wait for long."""

    limits = Limits(sent=40_000, received=60_000, documents=3, streams=3)
    indexed_kilobytes = 1
    patience = 0.5


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An engine in a folder of its own."""
    endpoint = acquire(tmp_path_factory.mktemp("qdrant"))
    yield endpoint
    endpoint.release()


@pytest.fixture
def front(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A front before it, whose key the environment has."""
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", endpoint.api_key)
    with fronted(endpoint) as front:
        yield front


@pytest.fixture
def vendor(endpoint: Endpoint) -> Iterator[QdrantClient]:
    """The vendor's client, past front and adapter; leaves nothing behind."""
    headers = {"api-key": endpoint.api_key}
    client = QdrantClient(url=endpoint.url, headers=headers, check_compatibility=False)
    yield client
    for collection in client.get_collections().collections:
        client.delete_collection(collection.name)
    client.close()


@pytest.fixture
def store(front: Front, vendor: QdrantClient) -> Iterator[Frugal]:
    """An absent datastore `law`, through the front."""
    store = Frugal.connect(front.location("law"))
    front.log.clear()
    yield store
    store.close()


def names_of(vendor: QdrantClient) -> list[str]:
    """Every collection there is."""
    return sorted(each.name for each in vendor.get_collections().collections)


def created(
    store: QdrantBackend, storage: str = "float16", dimension: int = DIMENSION, **options: str
) -> QdrantBackend:
    store.create(Spec(dimension, storage, options), {"manifest": b"m"})
    return store


def document(number: int, count: int, dimension: int = DIMENSION) -> Entries:
    """Entries of one document with keys drawn from its number."""
    random = np.random.default_rng(number % 2**32)
    centres = np.random.default_rng(0).normal(0, 2.0, (40, dimension))
    keys = centres[random.integers(0, 40, count)] + random.normal(0, 1.0, (count, dimension))
    return of_keys(keys.astype(np.float32), number)


def of_keys(keys: Float32, number: int = 1) -> Entries:
    n = len(keys)
    return Entries(
        keys,
        np.arange(n, dtype=np.int64) % 50,
        np.full(n, number, np.int64),
        np.arange(n, dtype=np.int64),
    )
