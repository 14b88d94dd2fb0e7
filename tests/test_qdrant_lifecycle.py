"""Datastores that are half made, taken, killed, or known by a second name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from qdrant_client import QdrantClient, models

from knnlm_store.errors import (
    BackendUnavailable,
    StoreCorrupt,
    StoreExists,
    StoreMismatch,
    StoreNotFound,
    UsageError,
)
from knnlm_store.values import Spec
from knnlm_store_qdrant import QdrantBackend
from tests import qdrant_support as support
from tests.cli_support import run
from tests.qdrant_front import Asked, Front
from tests.qdrant_support import DIMENSION, Frugal, created, document, names_of

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store

ONE = models.VectorParams(size=3, distance=models.Distance.DOT)


# -- half made ---------------------------------------------------------------------------------


def test_foreign_collection_is_left_alone(store: Frugal, vendor: QdrantClient) -> None:
    """Neither taken over nor listed, nor dropped."""
    vendor.create_collection("law", ONE)
    with pytest.raises(StoreExists, match="a collection law that knnlm-store did not make"):
        created(store)
    assert not store.exists()
    with pytest.raises(StoreNotFound):
        store.drop()
    assert names_of(vendor) == ["law"]
    vectors = vendor.get_collection("law").config.params.vectors
    assert isinstance(vectors, models.VectorParams)
    assert vectors.size == 3


def test_half_made_is_absent_and_can_be_dropped(
    store: Frugal, front: Front, vendor: QdrantClient
) -> None:
    vendor.create_collection("law.records", ONE)
    assert not store.exists()
    assert Frugal.names(front.location("*")) == []
    for call in (lambda: store.put_records({"a": b""}), lambda: list(store.scan())):
        with pytest.raises(StoreNotFound, match="There is no datastore at"):
            call()
    with pytest.raises(StoreCorrupt, match="interrupted") as caught:
        created(store)
    assert caught.value.hint == f"Run: knnlm-store rm {front.location('law')}"
    store.drop()
    assert names_of(vendor) == []
    created(store)


def test_half_made_is_removed_by_rm(front: Front, vendor: QdrantClient) -> None:
    """The command that the error names; there is nothing to lose, so it asks nothing."""
    vendor.create_collection("law.records", ONE)
    removed = run("rm", front.location("law"))
    assert (removed.code, removed.out) == (0, f"removed {front.location('law')}\n"), removed.err
    assert names_of(vendor) == []


def test_killed_at_any_request(store: Frugal, front: Front, vendor: QdrantClient) -> None:
    """Of making, or of dropping: what is left is whole or absent, and can be dropped."""
    created(store)
    steps = len(front.log)
    assert steps > 5
    store.drop()
    for step in range(steps + 1):
        _cut_off_after(front, step)
        _tried(lambda: created(store))
        _let_through(front)
        assert store.exists() == (step == steps)
        if step == steps:
            assert store.get_records(["manifest"]) == {"manifest": b"m"}
        _tried(store.drop)
        assert names_of(vendor) == []
    for step in range(3):
        created(store).upsert(document(1, 3))
        _cut_off_after(front, step)
        _tried(store.drop)
        _let_through(front)
        if store.exists():
            assert store.count() == 3
        store.drop()
        assert names_of(vendor) == []


def _cut_off_after(front: Front, requests: int) -> None:
    front.log.clear()
    front.before = lambda asked: len(front.log) <= requests


def _let_through(front: Front) -> None:
    front.before = bool


def _tried(call: Callable[[], object]) -> None:
    with suppress(BackendUnavailable, StoreNotFound):
        call()


def test_who_comes_second_waits_for_the_first(store: Frugal, front: Front) -> None:
    """However slow it is: StoreExists means that the datastore is whole."""
    second = QdrantBackend.connect(front.location("law"))
    begun = threading.Event()

    def slowly(asked: Asked) -> bool:
        if asked.line == "PUT /collections/law":
            begun.set()
            time.sleep(1.0)
        return True

    front.before = slowly
    with ThreadPoolExecutor() as pool:
        first = pool.submit(created, store)
        assert begun.wait(10)
        with pytest.raises(StoreExists, match="There is a datastore"):
            created(second, "float32")
        assert second.spec() == Spec(DIMENSION, "float16")
        assert second.get_records(["manifest"]) == {"manifest": b"m"}
        first.result()
    second.close()


WHOLE = {"format": 1, "dimension": 3, "storage": "float16", "index": "hnsw"}
SPOILT = (
    {"dimension": 0},
    {"dimension": "3"},
    {"storage": "gold"},
    {"index": "tree"},
    {"format": "1"},
)


@pytest.mark.parametrize("made", ["{", "{}", "[]", *(json.dumps(WHOLE | each) for each in SPOILT)])
def test_what_does_not_say_what_it_is(
    store: Frugal, front: Front, vendor: QdrantClient, made: str
) -> None:
    """Is there, is of no use, and can be removed."""
    _say(store, vendor, made)
    other = Frugal.connect(front.location("law"))
    with pytest.raises(StoreCorrupt, match="does not say what it holds"):
        other.spec()
    assert Frugal.names(front.location("*")) == ["law"]
    other.drop()
    assert names_of(vendor) == []
    other.close()


def test_newer_format_is_refused(store: Frugal, front: Front, vendor: QdrantClient) -> None:
    _say(store, vendor, '{"format": 2}')
    other = Frugal.connect(front.location("law"))
    with pytest.raises(StoreMismatch, match="has format 2; this version reads up to 1") as caught:
        other.count()
    assert caught.value.field == "format"
    other.close()


def _say(store: Frugal, vendor: QdrantClient, made: str) -> None:
    """Make a datastore and have it say something else of itself."""
    created(store)
    (point,), _ = vendor.scroll("law.records", limit=1)
    assert point.payload is not None
    assert list(point.payload) == ["made"]
    vendor.upsert(
        "law.records", [models.PointStruct(id=point.id, vector=[0.0], payload={"made": made})]
    )


def test_dropped_and_made_anew_by_another(store: Frugal, front: Front) -> None:
    """What is remembered of the old one does not outlive the first error."""
    created(store, dimension=4)
    other = Frugal.connect(front.location("law"))
    other.drop()
    with pytest.raises(StoreNotFound):
        store.put_records({"a": b"1"})
    created(other)
    assert store.spec() == Spec(DIMENSION, "float16")
    store.upsert(document(1, 5))
    assert other.count() == 5
    other.close()


# -- aliases -----------------------------------------------------------------------------------


def test_an_alias_moves_in_one_request(store: Frugal, front: Front, vendor: QdrantClient) -> None:
    created(store)
    next_year = created(Frugal.connect(front.location("law-2")))
    store.set_alias("current")
    front.log.clear()
    next_year.set_alias("current")
    (asked,) = [a for a in front.log if a.line == "POST /collections/aliases"]
    assert len(asked.json["actions"]) == 4
    targets = {each.alias_name: each.collection_name for each in vendor.get_aliases().aliases}
    assert targets == {"current": "law-2", "current.records": "law-2.records"}
    assert Frugal.aliases(front.location("*")) == {"current": "law-2"}
    through = Frugal.connect(front.location("current"))
    front.log.clear()
    through.count()
    assert front.lines()[-1] == "POST /collections/law-2/points/count"
    with pytest.raises(UsageError, match="is an alias of another datastore"):
        through.drop()
    for each in (next_year, through):
        each.close()


def test_aliases_and_names_keep_apart(store: Frugal, front: Front, vendor: QdrantClient) -> None:
    """Of each other, and of what others made on the same server."""
    created(store).set_alias("current")
    vendor.create_collection("theirs", ONE)
    theirs = models.CreateAlias(collection_name="theirs", alias_name="prod")
    vendor.update_collection_aliases([models.CreateAliasOperation(create_alias=theirs)])
    assert Frugal.aliases(front.location("*")) == {"current": "law"}
    assert Frugal.names(front.location("*")) == ["law"]
    for name in ("theirs", "law"):
        with pytest.raises(StoreExists, match="would hide"):
            store.set_alias(name)
    for name in ("prod", "law", "nothing"):
        with pytest.raises(StoreNotFound, match="has no alias"):
            Frugal.remove_alias(front.location(name))
    for name in ("current", "prod"):
        again = Frugal.connect(front.location(name))
        with pytest.raises(StoreExists):
            created(again)
        again.close()
    assert names_of(vendor) == ["law", "law.records", "theirs"]


def test_dropping_takes_the_aliases_along(store: Frugal, vendor: QdrantClient) -> None:
    created(store).set_alias("current")
    store.drop()
    assert vendor.get_aliases().aliases == []


def test_what_an_alias_stood_for_is_gone(store: Frugal, front: Front) -> None:
    """Said by the name it was opened as; the alias itself may stand for another by now."""
    created(store).set_alias("current")
    through = Frugal.connect(front.location("current"))
    assert through.exists()
    next_year = created(Frugal.connect(front.location("law-2")))
    next_year.set_alias("current")
    store.drop()
    current = front.location("current")
    for call in (through.count, lambda: through.put_records({"a": b""})):
        with pytest.raises(StoreNotFound) as caught:
            call()
        assert str(caught.value) == f"{current} was opened as law, which is gone."
        assert caught.value.hint.startswith(f"Open {current} again;")
    with pytest.raises(StoreNotFound, match="There is no datastore at"):
        store.count()
    for each in (next_year, through):
        each.close()
