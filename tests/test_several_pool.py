"""Datastores pooled in one softmax: the neighbours are those of the union."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.calibrated import Calibration
from knnlm_store.calibration import stored_temperature
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, InvalidEntries, StoreMismatch, UsageError
from knnlm_store.fallback import Guard, Outages
from knnlm_store.generation import KnnLM
from knnlm_store.manifest import Manifest
from knnlm_store.memories import mixture_for
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Pool
from knnlm_store.transform import Transform
from knnlm_store.values import DocumentFilter, Float32, Freshness, Spec
from tests.faulty import PLACE, Clock, Faulty, FaultyRemote, down, healthy
from tests.reference import dense_mixture
from tests.several_support import TEXTS, entries_of, fields, filled, random_store
from tests.tiny import tiny_model

N = (40, 25)


@pytest.fixture
def manifest(shared_model: LanguageModel) -> Manifest:
    return shared_model.manifest()


def pool_of(manifest: Manifest, *uris: str) -> Pool:
    return Pool(
        random_store(manifest, n, seed, uri)
        for seed, (n, uri) in enumerate(zip(N, uris, strict=True))
    )


def queries(rows: int = 6, d: int = 32) -> Float32:
    return np.random.default_rng(7).standard_normal((rows, d)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 30, 60, 100])
@pytest.mark.parametrize("other", ["memory", "faiss"])
def test_the_neighbours_are_the_unions(
    manifest: Manifest, tmp_path: Path, other: str, k: int
) -> None:
    """By brute force; k may be more than either holds, or than both do."""
    uri = "memory:" if other == "memory" else f"faiss:{tmp_path}/other"
    with pool_of(manifest, "memory:", uri) as pool:
        found = pool.search(queries(), k)
        entries = entries_of(*pool.stores)
    n = min(k, sum(N))
    assert found.distances.shape == (6, k)
    for row, query in enumerate(queries().astype(np.float64)):
        exact = ((entries.keys.astype(np.float64) - query) ** 2).sum(1)
        np.testing.assert_allclose(found.distances[row, :n], np.sort(exact)[:n], rtol=1e-4)
        at = {int(i): d for i, d in zip(entries.ids, exact, strict=True)}
        ids = found.ids[row, :n].tolist()
        assert len(set(ids)) == n
        np.testing.assert_allclose([at[i] for i in ids], found.distances[row, :n], rtol=1e-4)
        token = dict(zip(entries.ids.tolist(), entries.tokens.tolist(), strict=True))
        assert [token[i] for i in ids] == found.tokens[row, :n].tolist()
    assert (found.tokens[:, n:] == -1).all()
    assert np.isinf(found.distances[:, n:]).all()


def test_the_first_named_wins_a_tie(manifest: Manifest) -> None:
    a, b = random_store(manifest, 9, 1), random_store(manifest, 9, 1)
    copy = entries_of(b)
    b.backend.delete(np.unique(copy.documents))
    b.backend.upsert(replace(copy, documents=copy.documents + 50_000))
    for first, second in ((a, b), (b, a)):
        found = Pool([first, second]).search(queries(), 18)
        alone = first.search(queries(), 9)
        # the same key may stand twice within a datastore too: look at distinct distances
        for row in range(6):
            for distance in np.unique(alone.distances[row]):
                tied = found.documents[row][found.distances[row] == distance]
                half = len(tied) // 2
                assert set(tied[:half].tolist()) == {int(alone.documents[0, 0])}
                assert int(alone.documents[0, 0]) not in tied[half:]


def test_a_pool_of_one_is_the_datastore(manifest: Manifest) -> None:
    store = random_store(manifest, 30, 1)
    for mine, theirs in zip(
        fields(Pool([store]).search(queries(), 7)), fields(store.search(queries(), 7)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_a_filter_is_for_all(manifest: Manifest) -> None:
    pool = pool_of(manifest, "memory:", "memory:")
    found = pool.search(queries(), 50, within=DocumentFilter.leaving_out([1000]))
    assert set(np.unique(found.documents)) == {-1, 2000}


def test_hidden_states_are_mapped_once(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    mean, matrix = rng.standard_normal(32), rng.standard_normal((32, 5))
    key_map = Transform(mean.astype(np.float32), matrix.astype(np.float32))
    pool = pool_of(manifest.mapping(key_map), "memory:", "memory:")
    calls: list[int] = []
    keys = Datastore.keys

    def counting(store: Datastore, hidden: Float32) -> Float32:
        calls.append(len(hidden))
        return keys(store, hidden)

    monkeypatch.setattr(Datastore, "keys", counting)
    found = pool.search(queries(), 9)
    assert calls == [6]
    entries, mapped = entries_of(*pool.stores), (queries() - key_map.mean) @ key_map.matrix
    exact = ((entries.keys[None].astype(np.float64) - mapped[:, None]) ** 2).sum(2)
    np.testing.assert_allclose(found.distances, np.sort(exact, axis=1)[:, :9], rtol=1e-4)
    with pytest.raises(InvalidEntries, match=r"shape \(6, 5\)"):
        pool.search(queries(d=5), 9)


def test_another_transform_is_refused(manifest: Manifest) -> None:
    rng = np.random.default_rng(3)
    a, b = (
        Transform(np.zeros(32, np.float32), rng.standard_normal((32, 5)).astype(np.float32))
        for _ in range(2)
    )
    first, second, bare = (random_store(manifest.mapping(t), 5, 0) for t in (a, b, None))
    for one, other in ((first, second), (first, bare), (bare, first)):
        with pytest.raises(StoreMismatch) as caught:
            Pool([one, other])
        assert str(caught.value) == (
            f"memory: maps keys by the transform {other.manifest.transform}, not by "
            f"{one.manifest.transform} as memory: does; they cannot be pooled."
        )
        assert caught.value.field == "transform"
        assert "--transform-from memory:" in caught.value.hint
        assert "Blend" in caught.value.hint
    Pool([first, random_store(manifest.mapping(a), 5, 1)])


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("key", {"key": "lm_head_input"}),
        ("tokenizer", {"tokenizer": "another"}),
        ("hidden_size", {"shape": {"hidden_size": 64}}),
        ("model", {"probe": np.full((4, 32), 3.0, np.float32)}),
    ],
)
def test_another_model_is_refused(manifest: Manifest, field: str, changes: dict[str, Any]) -> None:
    other = replace(manifest, **changes)
    with pytest.raises(StoreMismatch) as caught:
        Pool([random_store(manifest, 5, 0), random_store(other, 5, 1)])
    assert str(caught.value) == (f"memory: cannot be pooled with memory:: their {field} differs.")
    assert caught.value.field == field
    assert caught.value.hint == "Pool what one model wrote with one key point."


def test_other_windows_and_near_keys_are_pooled(
    manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(manifest, window=8, precision="bfloat16", probe=manifest.probe * 1.01)
    Pool([random_store(manifest, 5, 0), random_store(other, 5, 1)])
    assert "differ by 1.0%" in caplog.text


def test_none_and_twice_are_refused(manifest: Manifest) -> None:
    store = random_store(manifest, 5, 0)
    with pytest.raises(UsageError, match="at least one datastore"):
        Pool([])
    with pytest.raises(UsageError, match="memory: stands twice in a pool"):
        Pool([store, random_store(manifest, 5, 1), store])


def faulty_pool(manifest: Manifest, kind: type[Faulty]) -> tuple[Pool, list[Faulty]]:
    backends = [kind(PLACE), kind(PLACE)]
    for backend in backends:
        backend.create(Spec(manifest.dimension), manifest.records())
        source = random_store(manifest, 20, len(backends))
        backend.upsert(entries_of(source))
    return Pool(Datastore(PLACE, b, manifest) for b in backends), backends


def test_remote_ones_are_searched_at_the_same_time(manifest: Manifest) -> None:
    pool, backends = faulty_pool(manifest, FaultyRemote)
    both = threading.Barrier(2, timeout=20)
    for backend in backends:
        backend.fault = lambda call: both.wait()
    assert np.isfinite(pool.search(queries(), 5).distances).all()


@pytest.mark.parametrize("kind", [Faulty, FaultyRemote])
@pytest.mark.parametrize("bad", [0, 1])
def test_one_failing_fails_the_search(manifest: Manifest, kind: type[Faulty], bad: int) -> None:
    pool, backends = faulty_pool(manifest, kind)
    backends[bad].fault = down
    with pytest.raises(BackendUnavailable, match="server is down"):
        pool.search(queries(), 5)
    outages, clock = Outages(), Clock()
    guard = Guard(pool, outages, clock=clock)
    assert [guard.search(queries(), 5) for _ in range(4)] == [None] * 4
    assert (outages.fallbacks, outages.failures, outages.opened) == (4, 3, 1)
    backends[bad].fault, clock.now = healthy, 60.0
    found = guard.search(queries(), 5)
    assert found is not None
    np.testing.assert_array_equal(found.distances, pool.search(queries(), 5).distances)


def test_a_deadline_is_for_the_whole_pool(manifest: Manifest) -> None:
    pool, backends = faulty_pool(manifest, FaultyRemote)
    gate, outages = threading.Event(), Outages()
    backends[1].fault = lambda call: gate.wait(60)
    try:
        assert Guard(pool, outages, timeout=0.2).search(queries(), 5) is None
    finally:
        gate.set()
    assert outages.last_error == "memory: + memory: did not answer within 0.2 s."
    assert [b.timeouts for b in backends] == [[0.2], [0.2]]


def test_freshness_reaches_each(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, backends = faulty_pool(manifest, Faulty)
    seen: list[Freshness] = []
    search = Faulty._search

    def noting(self: Faulty, *arguments: Any) -> Any:
        seen.append(arguments[3])
        return search(self, *arguments)

    monkeypatch.setattr(Faulty, "_search", noting)
    pool.search(queries(), 3, freshness=Freshness.FAST)
    assert seen == [Freshness.FAST] * len(backends)


@torch.no_grad()
def test_used_together_they_are_one_datastore(model: Any, tokenizer: Any) -> None:
    """Each position against the dense mixture over the entries of both."""
    lm = LanguageModel.wrap(model, tokenizer, window=64)
    a, b = filled(lm, TEXTS[0]), filled(lm, TEXTS[1])
    knn = KnnLM(lm).use([a, b], Mixture(12, 2.0, Fixed(0.5)))
    tokens = tokenizer("the creditor shall disc", return_tensors="pt").input_ids
    mixed = model(tokens).logits[0].log_softmax(-1)
    plain = knn.off().language_model.model(tokens).logits[0]
    hidden = lm.tap.read(model, tokens, None)[0]
    both = entries_of(a, b)
    for i in range(1, tokens.shape[1]):  # the first position's key stands in both: ties
        expected = dense_mixture(plain[i].numpy(), hidden[i].numpy(), both, 12, 2.0, 0.5)
        np.testing.assert_allclose(mixed[i].numpy(), expected, atol=1e-4)
        alone = dense_mixture(plain[i].numpy(), hidden[i].numpy(), entries_of(a), 12, 2.0, 0.5)
        assert np.abs(alone - expected).max() > 1e-3


def test_by_default_a_pool_has_the_median_temperature(language_model: LanguageModel) -> None:
    stores = [filled(language_model, *(text,) * 3) for text in TEXTS]
    each = [mixture_for(store) for store in stores]
    temperatures = [m.temperature for m in each]
    assert temperatures == [stored_temperature(store) for store in stores]
    assert len(set(temperatures)) == 3
    mixture = mixture_for(Pool(stores))
    assert mixture == replace(each[0], temperature=sorted(temperatures)[1])
    # what one datastore was calibrated to is its own
    fitted = Mixture(7, 9.0, Fixed(0.125))
    Calibration.of(stores[0], {"fixed": fitted}, "fixed", "now", {}).write(stores[0])
    assert mixture_for(stores[0]) == fitted
    assert mixture_for(Pool(stores)) == mixture


@torch.no_grad()
def test_a_pool_of_another_model_leaves_what_was_in_use(model: Any, tokenizer: Any) -> None:
    lm = LanguageModel.wrap(model, tokenizer, window=64)
    knn = KnnLM(lm).use([filled(lm, TEXTS[0]), filled(lm, TEXTS[1])])
    other = LanguageModel.wrap(tiny_model("llama", seed=9), tokenizer, window=64)
    before = knn._used.now
    with pytest.raises(StoreMismatch, match="was written by another model"):
        knn.use([filled(other, TEXTS[0]), filled(other, TEXTS[1])])
    with pytest.raises(StoreMismatch, match="their model differs"):
        knn.use([filled(lm, TEXTS[0]), filled(other, TEXTS[1])])
    assert knn._used.now is before
