"""Searches through the index: recall, filters, additions, and the saved index as a mere cache."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knnlm_store.values import DocumentFilter, Entries, Float32, Int64, Neighbours
from knnlm_store_faiss import FaissBackend
from knnlm_store_faiss.datafiles import STORAGES, Codec
from tests.faiss_support import Early, clustered, connect, created, of_keys

DIMENSION = 64
COUNT = 20_000
KEYS = clustered(COUNT, DIMENSION, seed=1, centre=1.0)
QUERIES = clustered(60, DIMENSION, seed=2, centre=1.0)
DOCUMENTS = 1_000_000 * np.arange(1, 21)  # of 1000 entries each


def nearest(queries: Float32, keys: Float32, k: int) -> tuple[Float32, Int64]:
    """Brute force in float64: squared distances and rows `[q, k]`."""
    x, q = keys.astype(np.float64), queries.astype(np.float64)
    distances = (q**2).sum(1)[:, None] + (x**2).sum(1) - 2 * q @ x.T
    rows = np.argsort(distances, axis=1)[:, :k]
    return np.take_along_axis(distances, rows, 1).astype(np.float32), rows


def rows_of(found: Neighbours) -> Int64:
    """Rows of KEYS that were found, -1 for padding."""
    rows = (found.documents // 1_000_000 - 1) * 1000 + found.positions
    return np.where(found.tokens < 0, -1, rows)


def recall(found: Neighbours, rows: Int64) -> float:
    pairs = zip(rows_of(found), rows, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))


def as_stored(store: FaissBackend, keys: Float32) -> Float32:
    codec = Codec(store.spec())
    return codec.decode(codec.encode(keys))


def entries() -> Entries:
    """KEYS as twenty documents."""
    rows = np.arange(COUNT)
    return Entries(KEYS, rows, DOCUMENTS[rows // 1000], rows % 1000)


@pytest.fixture(scope="module", params=STORAGES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a datastore with an index, not to be changed."""
    folder = tmp_path_factory.mktemp("built") / str(request.param)
    store = created(folder, request.param, DIMENSION, Early)
    store.upsert(entries())
    said = store.build_index()
    assert said is not None
    assert said.startswith("built IVF256 over 20,000 entries in ")
    assert store.describe_index() == "IVF256"
    assert store.build_index() is None
    store.close()
    return folder


@pytest.fixture
def shared(built: Path) -> Iterator[FaissBackend]:
    store = connect(built, Early)
    yield store
    store.close()


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Iterator[FaissBackend]:
    """A copy to change."""
    shutil.copytree(built, tmp_path / built.name)
    copied = connect(tmp_path / built.name, Early)
    yield copied
    copied.close()


def folder_of(store: FaissBackend) -> Path:
    return store._folder


@pytest.mark.parametrize("k", [1, 32, 1024])
@pytest.mark.parametrize("batch", [1, 60])
def test_recall(shared: FaissBackend, k: int, batch: int) -> None:
    """Against brute force over the keys as they are stored; distances are theirs."""
    distances, rows = nearest(QUERIES, as_stored(shared, KEYS), k)
    parts = [shared.search(QUERIES[i : i + batch], k) for i in range(0, 60, batch)]
    found = parts[0]._each(lambda *arrays: np.concatenate(arrays), *parts[1:])
    assert recall(found, rows) >= 0.97
    same = rows_of(found) == rows
    assert found.distances[same] == pytest.approx(distances[same], rel=5e-3, abs=1e-2)


def test_filters(shared: FaissBackend) -> None:
    """Few documents are searched exactly, most through the index; what is left out never comes."""
    for within, least in (
        (DocumentFilter.keeping(DOCUMENTS[:3]), 0.97),
        (DocumentFilter.leaving_out(DOCUMENTS[:3]), 0.97),
        (DocumentFilter.leaving_out(DOCUMENTS[:19]), 0.97),
    ):
        rows = np.flatnonzero(within.mask(DOCUMENTS).repeat(1000))
        _, near = nearest(QUERIES, KEYS[rows], 100)
        found = shared.search(QUERIES, 100, within=within)
        assert within.mask(found.documents).all()
        assert recall(found, rows[near]) >= least


def test_more_than_there_are(shared: FaissBackend) -> None:
    """All that pass are found, though they lie in many lists; the rest is padding."""
    within = DocumentFilter.keeping(DOCUMENTS[:2])
    found = shared.search(QUERIES[:2], 2100, within=within, with_keys=True)
    assert (found.tokens >= 0).sum(axis=1).tolist() == [2000, 2000]
    assert found.keys is not None
    assert not found.keys[:, 2000:].any()
    everything = shared.search(QUERIES[:2], COUNT + 5)
    assert (np.sort(rows_of(everything))[:, 5:] == np.arange(COUNT)).all()


def test_changes_need_no_rebuild(store: FaissBackend) -> None:
    """New keys, of a domain far from all before, deletions and replacements."""
    far = clustered(600, DIMENSION, seed=7, centre=40.0)
    store.upsert(of_keys(far, number=5))
    store.delete(DOCUMENTS[:10])
    moved = of_keys(KEYS[10_000:10_050] - 90, number=int(DOCUMENTS[10]))
    store.upsert(moved)
    for reader in (store, connect(folder_of(store), Early)):
        found = reader.search(far[:20], 10)
        distances, rows = nearest(far[:20], as_stored(store, far), 10)
        assert (found.documents == 5).all()
        assert np.mean([np.isin(*pair) for pair in zip(found.positions, rows, strict=True)]) > 0.9
        assert found.distances == pytest.approx(distances, abs=2e-4 * float((far**2).sum(1).max()))
        assert (reader.search(moved.keys, 1).ids[:, 0] == moved.ids).all()
        assert not np.isin(reader.search(QUERIES, 500).documents, DOCUMENTS[:10]).any()
        assert reader.describe_index() == "IVF256"
        reader.close()
    assert store.build_index() == "extended IVF256 to 10,600 entries"
    assert store.build_index() is None
    store.compact()
    assert store.describe_index() == "IVF256"
    assert (store.search(moved.keys, 1).ids[:, 0] == moved.ids).all()


def test_trained_again_after_much_growth(tmp_path: Path) -> None:
    store = created(tmp_path / "store", "float16", DIMENSION, Early)
    store.upsert(entries()[:600])
    assert store.describe_index() == "exact (no index built yet)"
    first = store.search(QUERIES, 10)
    assert str(store.build_index()).startswith("built IVF8 over 600")
    assert (store.search(QUERIES, 10).ids == first.ids).all()
    store.upsert(entries()[600:2400])
    assert str(store.build_index()).startswith("extended IVF8 to 2,400")
    store.upsert(entries()[2400:2500])
    assert str(store.build_index()).startswith("built IVF64 over 2,500")
    assert recall(store.search(QUERIES, 32), nearest(QUERIES, KEYS[:2500], 32)[1]) >= 0.97
    store.close()


def test_small_again(store: FaissBackend) -> None:
    """Back below the threshold there is no index, and compaction removes it."""
    store.delete(DOCUMENTS[1:])
    store.delete([1])
    store.upsert(entries()[:400])
    store.delete(DOCUMENTS[:1])
    store.upsert(entries()[:400])
    assert store.describe_index() == "exact"
    store.compact()
    assert not list(folder_of(store).glob("index.*"))
    assert rows_of(store.search(KEYS[:5], 1))[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_searched_while_it_is_built(tmp_path: Path) -> None:
    store = created(tmp_path / "store", "float16", DIMENSION, Early)
    store.upsert(entries())
    builder = threading.Thread(target=store.build_index)
    builder.start()
    searches = 0
    while builder.is_alive() or not searches:
        store.upsert(of_keys(KEYS[:1], number=3 + searches))
        assert recall(store.search(QUERIES[:2], 20), nearest(QUERIES[:2], KEYS, 20)[1]) >= 0.9
        searches += 1
    builder.join()
    assert store.describe_index() == "IVF256"
    store.close()


# -- the saved index -------------------------------------------------------------------------


def test_saved_index_is_small(shared: FaissBackend) -> None:
    """Two bytes an entry and the centroids: the keys are not stored twice."""
    size = next(folder_of(shared).glob("index.*")).stat().st_size
    assert size < 2 * COUNT + 256 * DIMENSION * 4 + 256 * 48


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "of another generation"])
def test_bad_saved_index_is_built_again(
    store: FaissBackend, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning and no error, by whoever searches."""
    path = folder_of(store) / "index.1"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[9 if damage == "of another generation" else 5000] ^= 1
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = store.search(QUERIES, 32)
    assert recall(found, nearest(QUERIES, KEYS, 32)[1]) >= 0.95
    assert "building it again" in caplog.text
    assert len(caplog.records) == 1
    store.build_index()
    store.close()
