"""Answers that cannot be: an error of ours, and nothing believed."""

from __future__ import annotations

from typing import Any

import pytest

from knnlm_store.errors import StoreError
from knnlm_store.values import Location
from tests.milvus_support import created, keys, lite, of_keys

__all__ = ["lite"]

REPLIES: list[Any] = [
    [],
    [[], []],
    [None],
    [[{"entity": {"token": 1}}]],
    [[{}]],
    ["nonsense"],
]


@pytest.mark.parametrize("reply", REPLIES, ids=str)
def test_reply_that_cannot_be_read(
    lite: Location, monkeypatch: pytest.MonkeyPatch, reply: Any
) -> None:
    store = created(lite)
    monkeypatch.setattr(store._connected()._client, "search", lambda *_, **__: reply)
    with pytest.raises(StoreError, match="cannot be read"):
        store.search(keys(1), 3)
    store.close()


class Hits(list[Any]):
    """The hits of a query as pymilvus gives them, from (id, document, token) each."""

    def __init__(self, *hits: tuple[Any, Any, Any], distance: float = 1.0) -> None:
        super().__init__({"entity": {"document": hit[1], "token": hit[2]}} for hit in hits)
        self.ids, self.distances = [hit[0] for hit in hits], [distance] * len(hits)


FALSE_HITS = {
    "twice": [Hits((5, 5, 1), (5, 5, 1))],
    "negative position": [Hits((4, 5, 1))],
    "negative document": [Hits((4, -5, 1))],
    "large token": [Hits((5, 5, 2**32))],
    "negative token": [Hits((5, 5, -1))],
    "no integer": [Hits((5, 5, 1.5))],
    "text": [Hits((5, 5, "1"))],
    "too many": [Hits(*((i, 0, 1) for i in range(4)))],
    "no distance": [Hits((5, 5, 1), distance=float("inf"))],
}


@pytest.mark.parametrize("reply", FALSE_HITS.values(), ids=FALSE_HITS)
def test_hits_that_cannot_be(
    lite: Location, monkeypatch: pytest.MonkeyPatch, reply: list[Any]
) -> None:
    store = created(lite)
    client = store._connected()._client
    monkeypatch.setattr(client, "search", lambda *_, **__: [Hits((6, 5, 7))])
    assert store.search(keys(1), 3).tokens.tolist() == [[7, -1, -1]]
    monkeypatch.setattr(client, "search", lambda *_, **__: reply)
    with pytest.raises(StoreError, match="cannot be read"):
        store.search(keys(1), 3)
    store.close()


@pytest.mark.parametrize(
    "false",
    [{"id": 0, "document": 1}, {"token": 2**32}, {"token": "1"}, {"key": [float("nan")] * 8}],
    ids=str,
)
def test_rows_that_cannot_be(
    lite: Location, monkeypatch: pytest.MonkeyPatch, false: dict[str, Any]
) -> None:
    store = created(lite)
    store.upsert(of_keys(keys(1)))
    client = store._connected()._client
    real = client.query
    monkeypatch.setattr(client, "query", lambda *a, **k: [row | false for row in real(*a, **k)])
    with pytest.raises(StoreError, match="cannot be read"):
        list(store.scan(with_keys=True))
    store.close()


def test_rows_that_cannot_be_read(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    store = created(lite)
    monkeypatch.setattr(store._connected()._client, "query", lambda *_, **__: [{"other": 1}])
    for read in (store.count, lambda: list(store.scan()), lambda: store.get_records(["manifest"])):
        with pytest.raises(StoreError, match="cannot be read"):
            read()
    store.close()
