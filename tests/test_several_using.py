"""Datastores swapped for the length of a with block."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from knnlm_store import generation
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, StoreError, StoreMismatch, UsageError
from knnlm_store.generation import KnnLM
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.values import Location, Spec
from tests.faulty import PLACE, Faulty, FaultyRemote, healthy
from tests.several_support import TEXTS, entries_of, filled
from tests.tiny import tiny_model

MIXTURE = Mixture(8, 2.0, Fixed(0.6))


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> KnnLM:
    return KnnLM(LanguageModel.wrap(model, tokenizer, window=64))


@pytest.fixture
def stores(lm: KnnLM) -> list[Datastore]:
    return [filled(lm.language_model, text) for text in TEXTS[:2]]


@torch.no_grad()
def logits(lm: KnnLM) -> torch.Tensor:
    tokens = lm.language_model.tokenizer("the creditor shall", return_tensors="pt").input_ids
    made: torch.Tensor = lm.language_model.model(tokens).logits
    return made


def leave(fails: bool) -> None:
    if fails:
        raise ZeroDivisionError


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_in_use_comes_back(lm: KnnLM, stores: list[Datastore], fails: bool) -> None:
    a, b = stores
    first, second = (logits(lm.use(store, MIXTURE)) for store in (a, b))
    assert not torch.allclose(first, second)
    lm.use(a, MIXTURE)
    try:
        with lm.using(b, MIXTURE) as same:
            assert same is lm
            assert torch.equal(logits(lm), second)
            leave(fails)
    except ZeroDivisionError:
        assert fails
    assert torch.equal(logits(lm), first)


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_off_is_off_again(lm: KnnLM, stores: list[Datastore], fails: bool) -> None:
    a, b = stores
    plain, first = logits(lm), logits(lm.use(a, MIXTURE))
    lm.off()
    try:
        with lm.using(b, MIXTURE):
            assert not torch.equal(logits(lm), plain)
            leave(fails)
    except ZeroDivisionError:
        assert fails
    assert torch.equal(logits(lm), plain)
    assert torch.equal(logits(lm.on()), first)


def test_nothing_was_in_use(lm: KnnLM, stores: list[Datastore]) -> None:
    plain = logits(lm)
    with lm.using(stores, MIXTURE):
        assert not torch.equal(logits(lm), plain)
    assert torch.equal(logits(lm), plain)
    with pytest.raises(ModelError, match="No datastore is in use"):
        lm.on()


def test_blocks_in_blocks_and_switches_within(lm: KnnLM, stores: list[Datastore]) -> None:
    a, b = stores
    first, second = (logits(lm.use(store, MIXTURE)) for store in (a, b))
    with lm.using(a, MIXTURE):
        with lm.using(b, MIXTURE):
            lm.off()
        assert torch.equal(logits(lm), first)
        lm.use_rows([None])
    assert torch.equal(logits(lm), second)


def test_a_refusal_changes_nothing(lm: KnnLM, stores: list[Datastore]) -> None:
    first = logits(lm.use(stores[0], MIXTURE))
    other = LanguageModel.wrap(tiny_model("llama", seed=9), lm.language_model.tokenizer, window=64)
    with (
        pytest.raises(StoreMismatch, match="was written by another model"),
        lm.using(filled(other, TEXTS[0])),
    ):
        pytest.fail("the block must not be entered")
    with pytest.raises(UsageError, match="above 0 seconds"), lm.using(stores[1], timeout=-1):
        pytest.fail("the block must not be entered")
    assert torch.equal(logits(lm), first)


def test_what_it_opened_it_closes(
    lm: KnnLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"faiss:{tmp_path}/a"
    filled(lm.language_model, TEXTS[0], uri=uri).close()
    closed: list[Datastore] = []
    close = Datastore.close

    def noting(store: Datastore) -> None:
        closed.append(store)
        close(store)

    monkeypatch.setattr(Datastore, "close", noting)
    with Datastore.open(uri) as given:
        with lm.using(given, MIXTURE):
            expected = logits(lm)
        assert closed == []
        with lm.using(uri, MIXTURE):
            assert torch.equal(logits(lm), expected)
        assert len(closed) == 1
        assert closed[0] is not given


class Names:
    """Datastores that are opened by name, and which of them are open."""

    def __init__(self, lm: KnnLM, patch: pytest.MonkeyPatch) -> None:
        self.open: list[str] = []
        self.backends = {name: self._backend(lm, TEXTS[i]) for i, name in enumerate("ab")}

        def opens(where: Location) -> Datastore:
            self.open.append(where.name)
            return Datastore(where, self.backends[where.name], lm.language_model.manifest())

        patch.setattr(Datastore, "open", opens)
        patch.setattr(Datastore, "close", lambda store: self.open.remove(store.location.name))

    @staticmethod
    def _backend(lm: KnnLM, text: str) -> Faulty:
        manifest, backend = lm.language_model.manifest(), FaultyRemote(PLACE)
        backend.create(Spec(manifest.dimension), manifest.records())
        backend.upsert(entries_of(filled(lm.language_model, text)))
        return backend


@pytest.fixture
def names(lm: KnnLM, stores: list[Datastore], monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(lm, monkeypatch)


A, B = "faiss:x/a", "faiss:x/b"


def test_a_hundred_switches_leave_one_open(lm: KnnLM, names: Names) -> None:
    for _ in range(50):
        lm.use(A, MIXTURE)
        assert names.open == ["a"]
        lm.use_rows([(B, MIXTURE)])
        assert names.open == ["b"]
    with lm.using(A, MIXTURE):
        lm.use([A, B], MIXTURE)
        assert sorted(names.open) == ["a", "b", "b"]
        with pytest.raises(UsageError, match="above 0 seconds"):
            lm.use(A, timeout=-1)
    assert names.open == ["b"]
    assert logits(lm).isfinite().all()
    lm.detach()
    assert names.open == []


@pytest.mark.parametrize("again", [False, True])
def test_what_is_detached_in_a_block_closes_all(lm: KnnLM, names: Names, again: bool) -> None:
    """What was in use before the block, too; also where another one is attached instead."""
    plain = logits(lm)
    lm.use(A, MIXTURE)
    with lm.using(B, MIXTURE):
        assert sorted(names.open) == ["a", "b"]
        if again:
            KnnLM(lm.language_model)
        else:
            lm.detach()
        assert names.open == ["a"]
    assert names.open == []
    assert torch.equal(logits(lm), plain)
    with pytest.raises(ModelError, match="No datastore is in use"):
        lm.on()


def test_an_explanation_keeps_its_datastore(
    lm: KnnLM, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explaining(*_: Any, **__: Any) -> None:
        lm.use(B, MIXTURE)
        assert names.open == ["a", "b"]

    monkeypatch.setattr(generation, "explain", explaining)
    lm.use(A, MIXTURE).explain("the creditor shall")
    assert names.open == ["b"]


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_what_is_still_searched_stays_open(lm: KnnLM, names: Names, timeout: float | None) -> None:
    """By a step in another thread, or for a step that waits no more."""
    expected = logits(lm.use(A, MIXTURE))
    begun, gate, made = threading.Event(), threading.Event(), []

    def hold(call: int) -> None:
        begun.set()
        gate.wait(60)

    names.backends["a"].fault = hold
    lm.use(A, MIXTURE, timeout=timeout)
    thread = threading.Thread(target=lambda: made.append(logits(lm)))
    thread.start()
    try:
        assert begun.wait(60)
        if timeout:
            thread.join(60)
        lm.use(B, MIXTURE)
        assert sorted(names.open) == ["a", "b"]
    finally:
        gate.set()
    thread.join(60)
    assert torch.equal(made[0], expected) == (timeout is None)
    end = time.monotonic() + 60
    while names.open != ["b"] and time.monotonic() < end:
        time.sleep(0.01)
    assert names.open == ["b"]


def test_what_cannot_be_closed_is_told(
    lm: KnnLM, names: Names, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def close(store: Datastore) -> None:
        raise StoreError("Gone.")

    lm.use(A, MIXTURE)
    monkeypatch.setattr(Datastore, "close", close)
    lm.use(B, MIXTURE)
    assert "could not be closed: Gone." in caplog.text


def test_a_step_in_flight_keeps_its_datastore(lm: KnnLM, stores: list[Datastore]) -> None:
    """Another thread's step began before the switch and ends after it."""
    backend, manifest = Faulty(PLACE), lm.language_model.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    backend.upsert(entries_of(stores[0]))
    slow = Datastore(PLACE, backend, manifest)
    first, second = (logits(lm.use(store, MIXTURE)) for store in (slow, stores[1]))
    lm.use(slow, MIXTURE)
    begun, gate, made = threading.Event(), threading.Event(), []

    def hold(call: int) -> None:
        begun.set()
        gate.wait(60)

    backend.fault = hold
    thread = threading.Thread(target=lambda: made.append(logits(lm)))
    thread.start()
    try:
        assert begun.wait(60)
        with lm.using(stores[1], MIXTURE):
            assert torch.equal(logits(lm), second)
            gate.set()
            thread.join(60)
    finally:
        gate.set()
    assert torch.equal(made[0], first)
    backend.fault = healthy
    assert torch.equal(logits(lm), first)
