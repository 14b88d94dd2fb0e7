"""Temperature, k and lambda before anybody fitted them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import intents
from knnlm_store.calibrated import Calibration
from knnlm_store.calibration import (
    DEFAULT_K,
    DEFAULT_LMBDA,
    default_mixture,
    estimate_temperature,
    keep_temperature,
    stored_temperature,
)
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreNotWritable, UsageError
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.values import Entries, Float32
from tests.ingest_support import an_intent, corpus, prose, put_documents, record


def fill(store: Datastore, documents: list[Float32], scale: float = 1.0) -> None:
    """Put documents made of given keys."""
    for i, keys in enumerate(documents):
        number, n = 1000 * (i + 1), len(keys)
        positions = np.arange(n, dtype=np.int64)
        entries = Entries(keys * np.float32(scale), positions, positions * 0 + number, positions)
        store.backend.upsert(entries)
        put_documents(store.backend, [record(f"{i:04}", number, n)])


def random_keys(rng: np.random.Generator, lengths: list[int]) -> list[Float32]:
    return [rng.normal(size=(n, 32)).astype(np.float32) for n in lengths]


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def by_brute_force(documents: list[Float32]) -> float:
    """One tenth of the median over all entries, each against all entries of other documents."""
    found = []
    for i, keys in enumerate(documents):
        others = np.concatenate([d for j, d in enumerate(documents) if j != i])
        distances = ((keys[:, None].astype(np.float64) - others[None]) ** 2).sum(2)
        found += np.sort(distances, axis=1)[:, 9].tolist()
    return float(np.median(found)) / 10


def test_one_tenth_of_the_median(memory_store: Datastore, rng: np.random.Generator) -> None:
    """Small enough that the sample is everything: 8 entries a document, at most 32 documents."""
    documents = random_keys(rng, [8] * 20)
    fill(memory_store, documents)
    expected = by_brute_force(documents)
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.005)


def test_it_scales_with_the_keys(memory_store: Datastore, rng: np.random.Generator) -> None:
    documents = random_keys(rng, [8] * 20)
    fill(memory_store, documents, scale=30.0)
    expected = 900 * by_brute_force(documents)
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.005)


def test_a_sample_of_a_large_datastore(memory_store: Datastore, rng: np.random.Generator) -> None:
    documents = random_keys(rng, [20, 5, 30] * 14)
    fill(memory_store, documents)
    expected = by_brute_force(documents)
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.1)


def test_neighbours_of_the_same_document_do_not_count(
    memory_store: Datastore, rng: np.random.Generator
) -> None:
    """A document's own entries lie close; other texts do not have them."""
    centres = rng.normal(size=(20, 1, 32)) * 10
    documents = [
        (centre + rng.normal(size=(12, 32)) * 0.01).astype(np.float32) for centre in centres
    ]
    fill(memory_store, documents)
    expected = by_brute_force(documents)
    assert expected > 10
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.05)


def test_a_single_document(memory_store: Datastore, rng: np.random.Generator) -> None:
    """Its own entries must do, each being its own nearest."""
    (keys,) = documents = random_keys(rng, [8])
    fill(memory_store, documents)
    distances = ((keys[:, None] - keys[None]) ** 2).sum(2)
    expected = float(np.median(np.sort(distances, axis=1)[:, -1])) / 10
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.005)


def test_fewer_than_ten(memory_store: Datastore, rng: np.random.Generator) -> None:
    """The farthest neighbour stands in for the tenth."""
    first, second = documents = random_keys(rng, [2, 3])
    fill(memory_store, documents)
    distances = ((first[:, None] - second[None]) ** 2).sum(2)
    expected = np.median([*distances.max(axis=1), *distances.max(axis=0)]) / 10
    assert estimate_temperature(memory_store) == pytest.approx(float(expected), rel=0.005)


def test_nothing_to_measure(memory_store: Datastore) -> None:
    assert estimate_temperature(memory_store) == 1.0
    fill(memory_store, [np.ones((20, 32), np.float32)] * 3)
    assert estimate_temperature(memory_store) == 1.0


def test_documents_without_entries_and_uncommitted_ones(
    memory_store: Datastore, rng: np.random.Generator
) -> None:
    documents = random_keys(rng, [8] * 15)
    fill(memory_store, documents)
    intents.put(memory_store.backend, [an_intent("s/z", 77_000, "w")])
    put_documents(memory_store.backend, [record("y", 88_000, 0)])
    expected = by_brute_force(documents)
    assert estimate_temperature(memory_store) == pytest.approx(expected, rel=0.005)


def test_it_is_taken_once_and_kept(
    language_model: LanguageModel, memory_store: Datastore, rng: np.random.Generator
) -> None:
    ingest(corpus({str(i): prose(i, 30) for i in range(5)}), language_model, memory_store)
    assert stored_temperature(memory_store) is None
    first = default_mixture(memory_store).temperature
    assert first == estimate_temperature(memory_store) == stored_temperature(memory_store)
    fill(memory_store, random_keys(rng, [40] * 20), scale=100.0)
    assert estimate_temperature(memory_store) > 2 * first
    assert default_mixture(memory_store).temperature == first


def test_an_ingest_that_changes_something_has_it_taken_anew(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    texts = {str(i): prose(i, 30) for i in range(5)}
    ingest(corpus(texts), language_model, memory_store)
    kept = keep_temperature(memory_store)
    ingest(corpus(texts), language_model, memory_store)
    assert stored_temperature(memory_store) == kept
    for change in ({"0": "changed"}, {"1": ""}, {"new": prose(9, 30)}):
        ingest(corpus(texts | change), language_model, memory_store)
        assert stored_temperature(memory_store) is None
        keep_temperature(memory_store)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"3",
        b"null",
        b"{}",
        b'{"temperature": null}',
        b'{"temperature": "warm"}',
        b'{"temperature": 0}',
        b'{"temperature": -1}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b"\xff",
    ],
)
def test_a_bad_stored_value(memory_store: Datastore, value: bytes) -> None:
    memory_store.backend.put_records({"temperature": value})
    with pytest.raises(StoreCorrupt) as caught:
        default_mixture(memory_store)
    assert str(caught.value) == "The temperature kept in memory: cannot be read."
    assert caught.value.hint.startswith("Pass --temperature")
    assert default_mixture(memory_store, temperature=2.0).temperature == 2.0


def test_what_the_user_says_counts(memory_store: Datastore) -> None:
    memory_store.backend.put_records({"temperature": json.dumps({"temperature": 7.5}).encode()})
    default = default_mixture(memory_store)
    assert (default.k, default.temperature) == (DEFAULT_K, 7.5)
    assert default.policy == Ratio()
    assert default_mixture(memory_store, policy="fixed").policy == Fixed(DEFAULT_LMBDA)
    said = default_mixture(memory_store, k=3, temperature=0.5, lmbda=0.0)
    assert (said.k, said.temperature, said.policy) == (3, 0.5, Fixed(0.0))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"temperature": 0.0}, r"The temperature must be above 0, not 0\.0"),
        ({"temperature": float("nan")}, "must be above 0, not nan"),
        ({"lmbda": 1.1}, r"lambda must lie in 0\.\.1, not 1\.1"),
    ],
)
def test_what_cannot_be_right(
    memory_store: Datastore, said: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        default_mixture(memory_store, **said)  # type: ignore[arg-type]
    assert stored_temperature(memory_store) is None


def test_a_datastore_that_cannot_be_written(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temperature is taken each time then, and nothing fails."""
    with Datastore.open_or_create(f"faiss:{tmp_path}/x", language_model.manifest()) as store:
        ingest(corpus({str(i): prose(i, 30) for i in range(5)}), language_model, store)

        def refuse(_: object) -> None:
            raise StoreNotWritable("Read-only file system.")

        monkeypatch.setattr(store.backend, "put_records", refuse)
        assert default_mixture(store).temperature == estimate_temperature(store)
        assert stored_temperature(store) is None


def test_a_calibration_in_use_is_logged(
    memory_store: Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    """From Python too: at INFO, and louder where it makes the datastore keep silent."""
    caplog.set_level("INFO", "knnlm_store")
    default_mixture(memory_store, temperature=1.0)
    assert caplog.records == []
    for policy, level, said in (
        (Ratio(), "INFO", "as tuned: ratio policy, k 8, temperature 0.5"),
        (Fixed(0.0), "WARNING", "as tuned: the plain model; this datastore did not pay on "),
    ):
        mixtures = {"mine": Mixture(8, 0.5, policy)}
        Calibration.of(memory_store, mixtures, "mine", "", {}).write(memory_store)
        assert default_mixture(memory_store) == mixtures["mine"]
        assert caplog.records[-1].levelname == level
        assert caplog.records[-1].getMessage().startswith(f"memory:: {said}")
        default_mixture(memory_store, lmbda=0.1, temperature=1.0)
    assert len(caplog.records) == 2
