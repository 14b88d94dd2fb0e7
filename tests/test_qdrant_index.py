"""Having the server build an index, and waiting for it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from knnlm_store.errors import BackendUnavailable, StoreError, StoreNotFound
from knnlm_store_qdrant import indexing
from knnlm_store_qdrant.engine import Endpoint
from tests import qdrant_support as support
from tests.qdrant_engine_support import builders, until
from tests.qdrant_front import Asked, Front, Reply
from tests.qdrant_support import Frugal, created, document

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store


class Impatient(Frugal):
    """Gives a server a second to begin."""

    stall = 1.0


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
def test_index_is_deferred_until_asked_for(
    store: Frugal, vendor: QdrantClient, storage: str
) -> None:
    """Until then every key is compared; from then on the server keeps it up."""
    entries = document(1, 2000)
    created(store, storage).upsert(entries)
    assert vendor.get_collection("law").indexed_vectors_count == 0
    assert store.describe_index() == "exact (no index built yet)"
    exact = store.search(entries.keys[:50], 10)
    done = store.build_index()
    assert done is not None
    assert done.startswith("built HNSW16 over 2,000 of 2,000 entries in ")
    assert vendor.get_collection("law").indexed_vectors_count == 2000
    assert store.describe_index() == "HNSW16"
    found = store.search(entries.keys[:50], 10)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(exact.ids, found.ids, strict=True)]
    assert np.mean(shared) / 10 > 0.97
    assert store.build_index() is None


def test_small_stores_need_no_index(store: Frugal, vendor: QdrantClient) -> None:
    """Nothing is built, but what is added later may be."""
    created(store).upsert(document(1, 3))
    assert store.build_index() is None
    assert store.describe_index() == "exact (no index built yet)"
    assert vendor.get_collection("law").config.optimizer_config.indexing_threshold == 1


def test_part_of_an_index(store: Frugal, front: Front) -> None:
    created(store).upsert(document(1, 2000))
    _report(front, indexed_vectors_count=1500)
    assert store.describe_index() == "HNSW16 over 1,500 entries, else exact"


def test_a_failed_build_is_told(store: Frugal, front: Front) -> None:
    created(store).upsert(document(1, 2000))
    _report(front, status="yellow", optimizer_status={"error": "no memory"})
    with pytest.raises(StoreError, match="failed to build the index: no memory"):
        store.build_index()
    _report(front, status="red")
    with pytest.raises(StoreError, match="failed to build the index: red"):
        store.build_index()


def test_a_build_that_failed_is_asked_for_again(
    store: Frugal, endpoint: Endpoint, vendor: QdrantClient
) -> None:
    """Though nothing is to be changed by that."""
    until(lambda: not builders(endpoint), "end of what others had built")
    created(store, m="32", ef_construct="400").upsert(document(1, 3000))
    asked = models.OptimizersConfigDiff(indexing_threshold=store.indexed_kilobytes)
    vendor.update_collection("law", optimizers_config=asked)
    until(lambda: builders(endpoint), "builder")
    os.kill(builders(endpoint)[0], signal.SIGKILL)
    until(lambda: vendor.get_collection("law").status == models.CollectionStatus.RED, "red")
    assert "built HNSW32 over 3,000 of 3,000 entries" in str(store.build_index())


def test_a_server_at_work_is_waited_for(front: Front, vendor: QdrantClient) -> None:
    """For longer than one that does not begin."""
    store = created(Impatient.connect(front.location("law")))
    store.upsert(document(1, 2000))
    until = time.monotonic() + 2.5
    _report(front, lambda: time.monotonic() < until, status="yellow")
    began = time.monotonic()
    assert "built HNSW16 over 2,000 of 2,000" in str(store.build_index())
    assert time.monotonic() - began > 2
    store.close()


def test_a_server_that_does_not_begin(
    front: Front, vendor: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is told again, and given up in the end."""
    monkeypatch.setattr(indexing, "_NUDGE", 0.3)
    store = created(Impatient.connect(front.location("law")))
    store.upsert(document(1, 2000))
    _report(front, status="grey")
    with pytest.raises(BackendUnavailable, match="has not begun to build the index"):
        store.build_index()
    assert front.lines().count("PATCH /collections/law") > 1
    store.close()


def test_a_server_that_does_not_get_on(
    front: Front, vendor: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it says that it is at work: it has as long as so many entries can take."""
    monkeypatch.setattr(indexing, "_SLOWEST", 10_000.0)
    store = created(Impatient.connect(front.location("law")))
    store.upsert(document(1, 2000))
    _report(front, status="yellow", indexed_vectors_count=0, segments_count=1)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="is not getting on with the index"):
        store.build_index()
    assert time.monotonic() - began > 1.2
    store.close()


def test_an_index_of_nothing(store: Frugal) -> None:
    for call in (store.build_index, store.describe_index):
        with pytest.raises(StoreNotFound, match="There is no datastore at"):
            call()


def _report(front: Front, when: Callable[[], bool] = lambda: True, **facts: Any) -> None:
    """Have the server say other things of the collection, as long as `when` is true."""

    def change(asked: Asked, reply: Reply) -> Reply:
        if asked.line != "GET /collections/law" or not when():
            return reply
        said = json.loads(reply[1])
        said["result"].update(facts)
        return reply[0], json.dumps(said).encode()

    front.change = change
