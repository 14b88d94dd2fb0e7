"""The key transform: the numbers, its record, and datastores that have one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.errors import InvalidEntries, StoreCorrupt, StoreMismatch, UsageError
from knnlm_store.ingest import ingest
from knnlm_store.interpolation import Float64
from knnlm_store.models import LanguageModel
from knnlm_store.transform import RECORD, Transform, fit
from knnlm_store.values import Float32
from tests.cli_support import run
from tests.ingest_support import corpus, held
from tests.tuning_support import KNOWN, one_thread

FEW = dict(list(KNOWN.items())[:3])


def hidden(rng: np.random.Generator, n: int, d: int) -> Float32:
    """Hidden states with a mean, and with variances that differ by orders of magnitude."""
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spread = rng.normal(size=(n, d)) * 10.0 ** -np.linspace(0, 2, d)
    return np.asarray(spread @ turn + 5, np.float32)


def covariance(keys: Float32) -> Float64:
    found: Float64 = np.cov(keys.astype(np.float64), rowvar=False, bias=True)
    return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# -- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("power", "m"), [(0.25, 5), (0.25, 12), (0.0, 5), (0.5, 5)])
def test_components_and_their_variances(rng: np.random.Generator, power: float, m: int) -> None:
    """Uncorrelated, the largest first; at power .25 the variances' square roots are left."""
    sample = hidden(rng, 4000, 12)
    transform = fit(sample, m, power)
    keys = transform(sample)
    assert keys.dtype == np.float32
    assert keys.shape == (4000, m)
    eigenvalues = np.linalg.eigvalsh(covariance(sample))[::-1][:m]
    np.testing.assert_allclose(
        covariance(keys), np.diag(eigenvalues ** (1 - 2 * power)), rtol=2e-3, atol=2e-3
    )
    np.testing.assert_allclose(keys.mean(axis=0), 0, atol=1e-3)


def test_by_singular_values(rng: np.random.Generator) -> None:
    """Another road to the same map: SVD of the centred sample, up to a component's sign."""
    sample = hidden(rng, 500, 8)
    transform = fit(sample, 4)
    wide = sample.astype(np.float64)
    _, values, directions = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    expected = directions[:4].T / (values[:4] ** 2 / 500) ** 0.25
    found = transform.matrix.astype(np.float64)
    np.testing.assert_allclose(transform.mean, wide.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, rtol=1e-4)
    new = hidden(rng, 3, 8)
    np.testing.assert_allclose(transform(new), (new - transform.mean) @ found, rtol=1e-4, atol=1e-5)


def test_the_sign_of_a_component_is_fixed(rng: np.random.Generator) -> None:
    """The same sample in another order gives the same map within rounding, and the same side."""
    sample = hidden(rng, 600, 10)
    one, two = fit(sample, 6), fit(sample[rng.permutation(600)], 6)
    np.testing.assert_allclose(one.matrix, two.matrix, rtol=1e-3, atol=1e-5)
    peaks = np.abs(one.matrix).argmax(axis=0)
    assert (one.matrix[peaks, np.arange(6)] > 0).all()
    assert fit(sample, 6).name == one.name


def test_a_direction_without_variance(rng: np.random.Generator) -> None:
    """It is not blown up to noise: its scale is floored."""
    sample = hidden(rng, 300, 6)
    sample[:, 2] = 7.0
    keys = fit(sample, 6)(sample)
    assert np.isfinite(keys).all()
    assert np.abs(keys[:, -1]).max() < 0.01 * np.abs(keys[:, 0]).max()
    same = np.full((50, 6), 3.0, np.float32)
    assert np.isfinite(fit(same, 6)(same)).all()


def test_dimensions(rng: np.random.Generator) -> None:
    """At most those of the hidden states; and too few samples are refused."""
    assert fit(hidden(rng, 40, 12)).dimension == 12
    assert fit(hidden(rng, 8, 12), 4).dimension == 4
    with pytest.raises(UsageError, match="23 hidden states are too few to fit 12 dimensions"):
        fit(hidden(rng, 23, 12))
    with pytest.raises(UsageError, match="7 hidden states are too few to fit 4 dimensions"):
        fit(hidden(rng, 7, 12), 4)
    with pytest.raises(UsageError, match="at least 1 dimension, not 0"):
        fit(hidden(rng, 40, 12), 0)
    empty = fit(hidden(rng, 40, 12), 4)(np.empty((0, 12), np.float32))
    assert empty.shape == (0, 4)
    assert empty.dtype == np.float32


# -- the record -----------------------------------------------------------------------------------


@pytest.fixture
def transform(rng: np.random.Generator) -> Transform:
    return fit(hidden(rng, 100, 6), 3)


def test_one_name_one_map(transform: Transform) -> None:
    assert transform.name.startswith("pca3-")
    assert len(transform.name) == 5 + 12
    again = Transform.read(transform.records(), transform.name, "here")
    assert again is not None
    assert again.name == transform.name
    for name in ("mean", "matrix"):
        one, two = getattr(again, name), getattr(transform, name)
        assert (one.tobytes(), one.dtype, one.shape) == (two.tobytes(), two.dtype, two.shape)
    for index in np.ndindex(3):
        mean = transform.mean.copy()
        mean[index] = np.nextafter(mean[index], np.float32(np.inf))
        assert replace(transform, mean=mean).name != transform.name
    for index in np.ndindex(6, 3):
        matrix = transform.matrix.copy()
        matrix[index] = -matrix[index]
        assert replace(transform, matrix=matrix).name != transform.name
    assert Transform.read({}, "none", "here") is None


def test_an_altered_record_is_refused_or_changes_nothing(transform: Transform) -> None:
    """Every byte of it, one after the other."""
    record = transform.records()[RECORD]
    refused = 0
    for place in range(len(record)):
        altered = bytearray(record)
        altered[place] ^= 0x01 if place % 2 else 0xFF
        try:
            read = Transform.read({RECORD: bytes(altered)}, transform.name, "here")
        except StoreCorrupt:
            refused += 1
        else:
            assert read is not None
            assert read.name == transform.name
    assert refused > len(record) // 2


def archive(*arrays: Float32) -> bytes:
    file = io.BytesIO()
    named: dict[str, Any] = dict(zip(("mean", "matrix"), arrays, strict=False))
    np.savez(file, **named)
    return file.getvalue()


NONE = [
    b"",
    b"PK",
    b"no archive",
    b"\x93NUMPY\x01\x00",
    archive(np.zeros(6, np.float32)),
    archive(np.zeros(6, np.float32), np.zeros(18, np.float32)),
    archive(np.zeros(5, np.float32), np.zeros((6, 3), np.float32)),
    archive(np.zeros((), np.float32), np.zeros((6, 3), np.float32)),
]


@pytest.mark.parametrize("value", NONE, ids=range(len(NONE)))
def test_a_record_that_is_none(transform: Transform, value: bytes) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        Transform.read({RECORD: value}, transform.name, "faiss:stores/law")
    assert str(caught.value) == "The key transform of faiss:stores/law cannot be read."
    assert caught.value.hint.endswith("knnlm-store rm faiss:stores/law")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        Transform.read({}, transform.name, "here")


# -- in a datastore -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_map(shared_model: LanguageModel) -> Transform:
    """A map from the tiny model's 32 dimensions to 10."""
    with Datastore.open_or_create("memory:", shared_model.manifest()) as plain:
        ingest(corpus(KNOWN), shared_model, plain)
        return fit(held(plain).keys, 10)


def mapped(lm: LanguageModel, key_map: Transform, uri: str = "memory:") -> Datastore:
    store = Datastore.open_or_create(uri, lm.manifest().mapping(key_map), "float32")
    ingest(corpus(FEW), lm, store)
    return store


def test_keys_are_stored_mapped(shared_model: LanguageModel, key_map: Transform) -> None:
    plain = Datastore.open_or_create("memory:", shared_model.manifest())
    ingest(corpus(FEW), shared_model, plain)
    store = mapped(shared_model, key_map)
    assert store.backend.spec().dimension == store.manifest.key_dimension == 10
    assert store.manifest.dimension == 32
    mine, theirs = held(store), held(plain)
    assert mine.ids.tolist() == theirs.ids.tolist()
    np.testing.assert_allclose(mine.keys, key_map(theirs.keys), atol=1e-4)


def test_hidden_states_are_searched(shared_model: LanguageModel, key_map: Transform) -> None:
    plain = Datastore.open_or_create("memory:", shared_model.manifest())
    ingest(corpus(FEW), shared_model, plain)
    store, queries = mapped(shared_model, key_map), held(plain).keys[7:20]
    found = store.search(queries, 5)
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=1e-4)
    keys, all_keys = key_map(queries).astype(np.float64), held(store).keys
    distances = np.sort(((keys[:, None] - all_keys[None]) ** 2).sum(2), axis=1)[:, :5]
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 10), (2, 31), (32,), (1, 2, 32)])
def test_another_width_is_refused(
    shared_model: LanguageModel, key_map: Transform, shape: tuple[int, ...]
) -> None:
    """Also that of its own keys: what is searched are hidden states."""
    store = mapped(shared_model, key_map)
    with pytest.raises(InvalidEntries, match=r"this datastore's model has \[n, 32\]"):
        store.search(np.zeros(shape, np.float32), 3)


def test_opened_again(shared_model: LanguageModel, key_map: Transform, tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/x"
    mapped(shared_model, key_map, uri).close()
    with Datastore.open(uri) as store:
        assert store.manifest.transform == key_map.name
        assert store.manifest.key_map is not None
        assert store.manifest.key_map.name == key_map.name
        altered = replace(key_map, mean=key_map.mean + 1)
        store.backend.put_records(altered.records())
    with pytest.raises(StoreCorrupt, match=f"The key transform of {uri} cannot be read"):
        Datastore.open(uri)


def test_the_first_writer_decides(
    shared_model: LanguageModel, key_map: Transform, tmp_path: Path
) -> None:
    """Whoever comes with another map, or with none, uses the datastore's own."""
    uri = f"faiss:{tmp_path}/x"
    mapped(shared_model, key_map, uri).close()
    for other in (None, replace(key_map, mean=key_map.mean + 1)):
        with Datastore.open_or_create(uri, shared_model.manifest().mapping(other)) as store:
            assert store.manifest.transform == key_map.name
            assert store.keys(np.zeros((1, 32), np.float32)).shape == (1, 10)


def test_a_copy_keeps_it(shared_model: LanguageModel, key_map: Transform, tmp_path: Path) -> None:
    source, uri = mapped(shared_model, key_map), f"faiss:{tmp_path}/x"
    with Datastore.open_or_create(uri, source.manifest, "float32") as target:
        copy(source, target)
    with Datastore.open(uri) as target:
        assert target.manifest == source.manifest
        assert target.manifest.key_map is not None
        np.testing.assert_array_equal(held(target).keys, held(source).keys)
        queries = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
        mine, theirs = target.search(queries, 3), source.search(queries, 3)
        np.testing.assert_array_equal(mine.ids, theirs.ids)
    plain = source.manifest.mapping(None)
    assert plain != source.manifest
    assert (plain.transform, plain.key_dimension, plain.key_map) == ("none", 32, None)


def test_info_shows_it(shared_model: LanguageModel, key_map: Transform, tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/x"
    mapped(shared_model, key_map, uri).close()
    facts = run("info", uri, "--json").json()
    assert facts["transform"] == key_map.name
    assert (facts["dimension"], facts["hidden_dimension"]) == (10, 32)
    assert f"transform:      {key_map.name}\n" in run("info", uri).out


def test_another_model_is_refused_as_ever(key_map: Transform, shared_model: LanguageModel) -> None:
    store = mapped(shared_model, key_map)
    other = replace(shared_model.manifest(), key="lm_head_input").mapping(key_map)
    with pytest.raises(StoreMismatch, match="with key"):
        store.require(other)
