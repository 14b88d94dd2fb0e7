"""Datastores in a folder, with Qdrant's engine in a child process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from knnlm_store.errors import BackendUnavailable, StoreNotFound, UsageError
from knnlm_store.values import Location
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import acquire
from tests.qdrant_support import created, document


def test_reading_a_place_that_is_not_there(tmp_path: Path) -> None:
    """Finds nothing and makes nothing."""
    location = Location("qdrant", str(tmp_path / "none"), "law")
    assert QdrantBackend.names(location) == []
    assert QdrantBackend.aliases(location) == {}
    store = QdrantBackend.connect(location)
    assert not store.exists()
    assert store.size() is None
    for call in (store.drop, store.count, lambda: list(store.scan())):
        with pytest.raises(StoreNotFound):
            call()
    with pytest.raises(StoreNotFound):
        QdrantBackend.remove_alias(location)
    assert list(tmp_path.iterdir()) == []
    created(store)
    assert QdrantBackend.names(location) == ["law"]
    store.close()
    assert QdrantBackend.names(location) == ["law"]


def test_an_engine_that_was_killed_is_started_again(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, and who writes on after an error writes everything."""
    location = Location("qdrant", str(tmp_path), "law")
    store = created(QdrantBackend.connect(location), "float32")
    store.upsert(document(1, 300))
    _kill_engine(tmp_path)
    assert store.count() == 300
    killer = threading.Timer(0.05, _kill_engine, [tmp_path])
    killer.start()
    failures = 0
    for number in range(2, 40):
        while True:
            try:
                store.upsert(document(number * 10_000, 200))
            except BackendUnavailable:
                failures += 1
                time.sleep(0.1)
            else:
                break
    killer.join()
    assert failures < 20
    assert store.count() == 300 + 38 * 200
    other = QdrantBackend.connect(location)
    assert other.count() == store.count()
    other.close()
    store.close()


def _kill_engine(folder: Path) -> None:
    endpoint = acquire(folder)
    process = endpoint._engine._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    endpoint.release()


def test_engine_ends_with_its_last_user(tmp_path: Path) -> None:
    stores = [QdrantBackend.connect(Location("qdrant", str(tmp_path), name)) for name in "ab"]
    for each in stores:
        created(each)
    endpoint = acquire(tmp_path)
    endpoint.release()
    stores[0].close()
    assert endpoint.poll() is None
    assert stores[1].exists()
    stores[1].close()
    assert endpoint.poll() is not None


def test_tls_is_for_servers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="qdrants: is for servers"):
        QdrantBackend.connect(Location("qdrants", str(tmp_path), "law"))
