"""What a search may take, and what a failed one leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import pytest
from pymilvus import exceptions as vendor

from knnlm_store.errors import BackendUnavailable, StoreNotFound
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend, building
from knnlm_store_milvus.connection import Connection
from knnlm_store_milvus.failures import NotLoaded
from tests.milvus_support import created, keys, lite, of_keys, served
from tests.proxies import Moods, passing

__all__ = ["lite"]


class Wire:
    """A datastore behind a proxy that keeps a record of the calls."""

    def __init__(self, location: Location, moods: Moods) -> None:
        self.location, self.moods = location, moods
        self.calls: list[str] = []
        moods.asked = lambda path: self.calls.append(PurePath(path).name)

    def hang(self, *methods: str) -> None:
        """Never answer these calls, or any if none is named."""
        self.moods.mood = lambda path: (
            "hang" if not methods or PurePath(path).name in methods else "pass"
        )


@pytest.fixture
def wire(lite: Location) -> Iterator[Wire]:
    store = created(lite)
    store.upsert(of_keys(keys(20)))
    with served(lite) as (location, moods):
        store.close()
        yield Wire(location, moods)


def is_late(call: Callable[[], object], seconds: float) -> None:
    """A call ends as one that had no answer in time, after so many seconds."""
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="in time"):
        call()
    assert seconds * 0.9 < time.monotonic() - began < seconds + 0.7


def test_late_search_forgets_nothing(wire: Wire) -> None:
    """The next one is one call: no look whether the datastore is there, indexed and loaded."""
    store = MilvusBackend.connect(wire.location)
    right = store.search(keys(2), 3).ids
    for mood in ("hang", "cut"):
        wire.moods.mood = lambda _, mood=mood: mood  # type: ignore[misc]
        with pytest.raises(BackendUnavailable):
            store.search(keys(2), 3, timeout=0.3)
        wire.moods.mood = passing
        wire.calls.clear()
        assert (store.search(keys(2), 3, timeout=5).ids == right).all()
        assert wire.calls == ["Search"]
    store.close()


@pytest.mark.parametrize("method", ["DescribeCollection", "GetLoadState", ""])
def test_deadline_holds_for_opening(wire: Wire, method: str) -> None:
    """An object that has looked at nothing yet, or has forgotten it."""
    store = MilvusBackend.connect(wire.location)
    wire.hang(*([method] if method else []))
    is_late(lambda: store.search(keys(1), 3, timeout=0.4), 0.4)
    wire.moods.mood = passing
    assert store.search(keys(1), 3, timeout=10).ids[0, 0] >= 0
    store.close()


def test_deadline_holds_for_all_calls_together(wire: Wire) -> None:
    store = MilvusBackend.connect(wire.location)

    def slowly(_: str) -> str:
        time.sleep(0.25)
        return "pass"

    wire.moods.mood = slowly
    is_late(lambda: store.search(keys(1), 3, timeout=0.6), 0.6)
    store.close()


def test_deadline_holds_while_another_opens(wire: Wire) -> None:
    store = MilvusBackend.connect(wire.location)
    wire.hang("DescribeCollection")
    wire.calls.clear()

    def open_it() -> None:
        with suppress(BackendUnavailable):
            store.count()

    other = threading.Thread(target=open_it)
    other.start()
    while "DescribeCollection" not in wire.calls:
        time.sleep(0.01)
    try:
        is_late(lambda: store.search(keys(1), 3, timeout=0.4), 0.4)
    finally:
        wire.moods.mood = passing
        wire.moods.over.set()  # what hangs fails
        other.join()
    store.close()


def test_deadline_holds_while_a_collection_loads(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MilvusBackend.connect(wire.location)
    monkeypatch.setattr(type(store._connected()), "left_to_load", lambda *_: 1)
    is_late(lambda: store.search(keys(1), 3, timeout=0.5), 0.5)
    store.close()


def test_deadline_may_be_longer_than_a_call_may_take(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNNLM_MILVUS_TIMEOUT", "0.5")
    store = MilvusBackend.connect(wire.location)
    store.count()

    def slowly(_: str) -> str:
        time.sleep(0.8)
        return "pass"

    wire.moods.mood = slowly
    assert store.search(keys(1), 3, timeout=5).ids[0, 0] >= 0
    is_late(store.count, 0.5)
    store.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (vendor.MilvusException(101, "collection not loaded"), NotLoaded),
        (vendor.MilvusException(100, "collection not found"), StoreNotFound),
    ],
    ids=["not loaded", "not found"],
)
def test_what_is_gone_is_looked_up_again(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    store = MilvusBackend.connect(wire.location)
    store.count()

    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store._connected()._client, "search", refuse)
        with pytest.raises(kind):
            store.search(keys(1), 3)
    wire.calls.clear()
    assert store.search(keys(1), 3).ids[0, 0] >= 0
    assert "DescribeCollection" in wire.calls
    store.close()


# -- waiting for what Milvus does in the background ------------------------------------------------

ROWS = 100_000


class Slow(Connection):
    """Indexes and loads ten segments, each in so many seconds of a clock of its own.

    used_at: when searches begin to use the index.
    """

    def __init__(self, seconds: float, patcher: pytest.MonkeyPatch) -> None:
        self.label, self.now, self.stops_at, self.used_at = "here", 0.0, 10, 0.0
        self._seconds = seconds
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep)
        patcher.setattr(building, "time", clock)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _segments(self) -> int:
        return min(self.stops_at, int(self.now / self._seconds))

    def flush(self, name: str) -> None:
        pass

    def left(self) -> float:
        return 30.0

    def index(self, name: str, field: str) -> dict[str, Any]:
        done = ROWS * self._segments()
        rows = {"indexed_rows": done, "total_rows": 10 * ROWS, "pending_index_rows": 0}
        return {"state": "InProgress", **rows}

    @contextmanager
    def calling(self) -> Iterator[tuple[Any, float]]:
        yield self, 30.0

    def list_loaded_segments(self, name: str, timeout: float) -> list[SimpleNamespace]:
        """As Milvus' client does."""
        index = int(self.now >= self.used_at)
        numbers = range(self._segments())
        return [SimpleNamespace(segment_id=i, num_rows=ROWS, index_id=index) for i in numbers]

    def left_to_load(self, name: str) -> int:
        return 100 - 10 * self._segments()


def test_a_long_wait_ends_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, as long as something is done from time to time."""
    slow = Slow(0.9 * building._STALLED, monkeypatch)
    assert building.index_all(slow, "law") == 10 * ROWS
    assert 9 * building._STALLED < slow.now < 9 * building._STALLED + 1
    slow.now = 0.0
    building.wait_loaded(slow, "law")
    assert 9 * building._STALLED < slow.now < 9 * building._STALLED + 1


@pytest.mark.parametrize("what", ["building the index", "loading the collection"])
def test_a_wait_without_progress_ends(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    slow = Slow(100.0, monkeypatch)
    slow.stops_at = 3
    wait = building.index_all if what.startswith("building") else building.wait_loaded
    with pytest.raises(BackendUnavailable, match=f"{what} got no further for 1800 s"):
        wait(slow, "law")
    assert 0 <= slow.now - 300 - building._STALLED < 2


@pytest.mark.parametrize(("used_at", "ends"), [(30.0, 30), (1e9, 10 + building._UNSEEN)])
def test_an_index_is_built_when_searches_use_it(
    monkeypatch: pytest.MonkeyPatch, used_at: float, ends: float
) -> None:
    """Where they do not seem to, it is built all the same."""
    slow = Slow(1.0, monkeypatch)
    slow.used_at = used_at
    assert building.index_all(slow, "law") == 10 * ROWS
    assert 0 <= slow.now - ends < 2


def test_few_rows_need_not_be_searched_through_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milvus compares their keys until then."""
    slow = Slow(1.0, monkeypatch)
    slow.used_at = 1e9
    monkeypatch.setattr(building, "_EXACT", 10 * ROWS)
    building.index_all(slow, "law")
    assert slow.now < 12
