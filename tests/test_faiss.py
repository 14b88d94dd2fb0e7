"""The FAISS adapter: what is stored, what is replaced, what compaction leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from knnlm_store import registry
from knnlm_store.values import MAX_ID, DocumentFilter, Entries, Float32, Spec
from knnlm_store_faiss import FaissBackend
from knnlm_store_faiss.datafiles import STORAGES, Codec
from knnlm_store_faiss.segments import Segments, runs
from tests.faiss_support import DIMENSION, Early, clustered, connect, created, document, of_keys


@pytest.fixture(params=STORAGES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaissBackend]:
    made = created(tmp_path / "store", request.param)
    yield made
    made.close()


def test_found_by_uri(tmp_path: Path) -> None:
    created(tmp_path / "law").close()
    created(tmp_path / "art").close()
    (tmp_path / "other").mkdir()
    found = registry.connect(f"faiss:{tmp_path}/law")
    assert isinstance(found, FaissBackend)
    assert found.spec() == Spec(DIMENSION, "float16")
    assert FaissBackend.names(registry.parse_root(f"faiss:{tmp_path}")) == ["art", "law"]
    found.close()


def test_points_on_a_line(store: FaissBackend) -> None:
    """Distances are squares."""
    keys = np.zeros((4, DIMENSION), np.float32)
    keys[:, 0] = range(4)
    store.upsert(of_keys(keys))
    assert store.search(keys[:1], 4).distances == pytest.approx(np.array([[0, 1, 4, 9]]), abs=1e-3)


def test_upsert_replaces_by_id(store: FaissBackend) -> None:
    """Across documents too: 10 + 3 and 13 + 0 are one id."""
    store.upsert(document(10, 6, token=1))
    store.upsert(document(13, 2, token=2))
    found = Entries.concatenate(list(store.scan()))
    expected = {10: 1, 11: 1, 12: 1, 13: 2, 14: 2, 15: 1}
    assert dict(zip(found.ids.tolist(), found.tokens.tolist(), strict=True)) == expected
    assert store.count([13]) == 2
    store.delete([10])
    assert store.search(document(10, 1).keys, 5).ids[0].tolist()[2:] == [-1, -1, -1]


def test_largest_numbers(store: FaissBackend) -> None:
    entries = Entries(
        document(1, 3).keys,
        np.array([2**32 - 1, 0, 7]),
        np.array([MAX_ID, MAX_ID - 5, 0]),
        np.array([0, 4, MAX_ID - 9]),
    )
    store.upsert(entries)
    store.upsert(entries)
    found = store.search(entries.keys, 1)
    for name in ("tokens", "documents", "positions", "ids"):
        assert getattr(found, name)[:, 0].tolist() == getattr(entries, name).tolist()
    assert store.count() == 3


@pytest.mark.parametrize("values", [1e-40, 1e-6, 1.0, 6e4])
def test_rounding(values: float) -> None:
    """float32 exactly, float16 to 11 bits, int8 to half a step of 1/127 of the largest."""
    keys = (np.random.default_rng(0).uniform(-1, 1, (50, 8)) * values).astype(np.float32)
    keys[7] = 0
    off = {}
    for storage in STORAGES:
        codec = Codec(Spec(8, storage))
        off[storage] = np.abs(codec.decode(codec.encode(keys)) - keys)
    assert not off["float32"].any()
    assert (off["float16"] <= np.abs(keys) * 2**-11 + 2**-25).all()
    assert (off["int8"] <= np.abs(keys).max(axis=1, keepdims=True) * (0.501 / 127) + 1e-44).all()


@pytest.mark.parametrize("kind", [FaissBackend, Early])
@pytest.mark.parametrize("storage", STORAGES)
def test_compaction_leaves_nothing_of_the_deleted(
    tmp_path: Path, storage: str, kind: type[FaissBackend]
) -> None:
    """Neither keys nor tokens nor records, in any file, with an index or without."""
    folder = tmp_path / "store"
    store = created(folder, storage, kind=kind)
    secret = clustered(40, DIMENSION, seed=5) + 30  # a clump of its own: centroids of its own
    kept = clustered(900, DIMENSION, seed=6)
    store.upsert(of_keys(kept, number=10**6))
    store.upsert(of_keys(secret, number=77, token=0x41424344))
    store.put_records({"document/77": b"a secret title" * 500})
    store.build_index()
    before = store.size()
    codes = Codec(store.spec()).encode(secret)
    tokens = np.full(4, 0x41424344, "<u4").tobytes()
    traces = [tokens, b"a secret title", *(c.tobytes() for c in codes)]
    assert sum(trace in everything(folder) for trace in traces) >= 42
    store.delete([77])
    store.delete_records(["document/77"])
    store.compact()
    assert [t for t in traces if t in everything(folder)] == []
    assert not any(key.tobytes() in everything(folder) for key in secret)
    assert before is not None
    assert (store.size() or 0) < before
    assert store.describe_index() == ("exact" if kind is FaissBackend else "IVF16")
    assert store.search(kept[:3], 1).ids[:, 0].tolist() == [10**6, 10**6 + 1, 10**6 + 2]
    assert {path.name for path in folder.iterdir()} <= {
        "store.sqlite", "keys.2", "tokens.2", "index.2",
    }  # fmt: skip
    store.close()


def everything(folder: Path) -> bytes:
    return b"|".join(path.read_bytes() for path in folder.iterdir())


def test_compaction_without_anything_dead_cuts_a_torn_tail(tmp_path: Path) -> None:
    store = created(tmp_path / "store")
    store.upsert(document(1, 10))
    with (tmp_path / "store" / "keys.1").open("ab") as file:
        file.write(b"torn")
    store.compact()
    assert b"torn" not in everything(tmp_path / "store")
    assert store.count() == 10
    store.close()


def test_close_can_be_followed_by_use(tmp_path: Path) -> None:
    """Closing lets go of files, no more; and a datastore made anew under the name is found."""
    store = created(tmp_path / "store")
    store.upsert(document(1, 10))
    store.close()
    assert store.count() == 10
    other = connect(tmp_path / "store")
    other.drop()
    other.create(Spec(3, "int8"), {})
    assert store.spec() == Spec(3, "int8")
    assert store.count() == 0
    store.close()
    other.close()


def test_disk_use_as_estimated(tmp_path: Path) -> None:
    """Some bytes beside the key: 4 for the token, 2 in the index."""
    store = created(tmp_path / "store", kind=Early)
    store.upsert(of_keys(clustered(20_000, DIMENSION, seed=1)))
    store.build_index()
    estimate = FaissBackend.bytes_per_entry(store.spec())
    assert estimate == 2 * DIMENSION + 6
    assert 1 <= (store.size() or 0) / (20_000 * estimate) < 1.1
    store.close()


def test_filter_in_memory(store: FaissBackend) -> None:
    for number in (100, 200, 300):
        store.upsert(document(number, 10))
    query: Float32 = document(200, 1).keys
    keep, leave = DocumentFilter.keeping([200, 5]), DocumentFilter.leaving_out([200])
    assert set(store.search(query, 20, within=keep).documents[0]) == {200, -1}
    assert set(store.search(query, 20, within=leave).documents[0]) == {100, 300}
    assert (store.search(query, 2, within=DocumentFilter.keeping([])).tokens == -1).all()
    assert np.isinf(store.search(query, 2, within=DocumentFilter.keeping([])).distances).all()


def test_resident_keys_follow_many_changes(tmp_path: Path) -> None:
    """Rows that die are let go of in memory too."""
    store = created(tmp_path / "store")
    for round_ in range(30):
        store.upsert(document(1000 * round_, 20, token=round_))
        store.delete([1000 * (round_ - 2)])
        found = store.search(document(1000 * round_, 1, token=round_).keys, 99)
        assert found.ids[0, 0] == 1000 * round_
        assert (found.tokens[0] >= 0).sum() == min(40, 20 * (round_ + 1))
    store.close()


ids = st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True)


@settings(deadline=None, max_examples=50)
@given(ids, st.integers(1, 7))
def test_runs_cover_a_batch(numbers: list[int], width: int) -> None:
    """Whatever the order, each row's owner is found again, in as few runs as there can be."""
    array = np.array(numbers)
    batch = Entries(np.empty((len(array), 0), np.float32), array, array // width, array % width)
    ordered, segments = runs(batch)
    documents, positions = segments.owners(np.arange(len(array)))
    assert (documents * width + positions == ordered.tokens).all()
    assert sorted(ordered.tokens.tolist()) == sorted(numbers)
    heads = {n for n in numbers if n % width == 0 or n - 1 not in numbers}
    assert len(segments.starts) == len(heads)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 2)), max_size=12))
def test_masks_and_packing(pieces: list[tuple[int, int, int]]) -> None:
    """Pieces are (dead rows before, rows, document)."""
    table, row, position = [], 0, 0
    for gap, count, owner in pieces:
        position += gap
        table.append((row + gap, count, owner, position))
        row, position = row + gap + count, position + count
    segments = Segments.of_table(np.array(table, np.int64).reshape(-1, 4))
    mask = segments.mask(row + 3)
    assert mask.sum() == sum(count for _, count, _ in pieces)
    packed = segments.packed()
    live = np.flatnonzero(mask)
    assert packed.counts.sum() == len(live)
    assert len(packed.starts) <= len(segments.starts)
    for before, after in zip(
        segments.owners(live), packed.owners(np.arange(len(live))), strict=True
    ):
        assert (before == after).all()
