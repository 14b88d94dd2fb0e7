from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knnlm_store.errors import InvalidEntries, UsageError
from knnlm_store.values import (
    MAX_ID,
    MAX_TOKEN,
    DocumentFilter,
    Entries,
    Location,
    Neighbours,
    Spec,
    check_dimension,
)


def entries(n: int = 3, d: int = 4, document: int = 100) -> Entries:
    return Entries(
        np.arange(n * d, dtype=np.float32).reshape(n, d),
        np.arange(n, dtype=np.int64),
        np.full(n, document, np.int64),
        np.arange(n, dtype=np.int64),
    )


def int64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


# The contract suite tries every way to spoil a batch, through a backend; here are the limits.


def test_extremes_pass_the_check() -> None:
    good = entries()
    good.check(Spec(4))
    replace(good, tokens=int64(0, 65_536, MAX_TOKEN)).check(Spec(4))
    replace(good, documents=int64(0, MAX_ID - 2, 5), positions=int64(0, 2, 9)).check(Spec(4))
    replace(good, keys=np.full((3, 4), -4e18, np.float32)).check(Spec(4))
    entries(n=0).check(Spec(4))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            {"keys": np.zeros((3, 5), np.float32)},
            "Keys have shape (3, 5); this datastore takes [3, 4].",
        ),
        ({"keys": np.zeros((3, 4))}, "Keys are float64; the contract takes float32."),
        ({"keys": np.full((3, 4), np.nan, np.float32)}, "Keys hold NaN or infinite values."),
        ({"keys": np.full((3, 4), -np.inf, np.float32)}, "Keys hold NaN or infinite values."),
        (
            {"keys": np.full((3, 4), -5e18, np.float32)},
            "Keys are so large that squared distances overflow float32.",
        ),
        ({"tokens": int64(0, 1, MAX_TOKEN + 1)}, "Token ids must lie in 0..2**32-1."),
        ({"tokens": int64(0, -1, 1)}, "Token ids must lie in 0..2**32-1."),
        ({"tokens": np.zeros(3)}, "tokens must be int64 of shape [3]."),
        ({"documents": int64(1, 2)}, "documents must be int64 of shape [3]."),
        ({"documents": int64(1, -2, 3)}, "documents must not be negative."),
        ({"positions": np.zeros(3, np.uint64)}, "positions must be int64 of shape [3]."),
        ({"positions": int64(1, -2, 3)}, "positions must not be negative."),
        ({"documents": int64(1, 2, MAX_ID)}, "An entry id exceeds 2**63-1."),
        ({"positions": int64(1, 2, 1)}, "An entry id stands twice in one batch."),
    ],
)
def test_what_may_not_be_written(spoilt: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidEntries) as refusal:
        replace(entries(), **spoilt).check(Spec(4))
    assert str(refusal.value) == message


def test_ids_are_document_plus_position() -> None:
    assert entries(document=2**62).ids.tolist() == [2**62, 2**62 + 1, 2**62 + 2]


def test_entries_select_and_join() -> None:
    whole = entries(n=5)
    joined = Entries.concatenate([whole[3:], whole[np.array([0])], whole[whole.tokens == 2]])
    assert joined.tokens.tolist() == [3, 4, 0, 2]
    assert joined.positions.tolist() == [3, 4, 0, 2]
    assert joined.keys[:, 0].tolist() == [12, 16, 0, 8]
    assert len(joined) == 4


def rows(*distances: float) -> Neighbours:
    """One row whose tokens tell in which order the distances were given."""
    n = len(distances)
    tokens = np.arange(n, dtype=np.int64)[None]
    keys = np.arange(n, dtype=np.float32).reshape(1, n, 1)
    return Neighbours(np.array([distances], np.float32), tokens, tokens + 50, tokens + 7, keys)


def test_sorting_carries_everything_along() -> None:
    found = rows(4, 0, np.inf, 1).sorted()
    assert found.distances.tolist() == [[0, 1, 4, np.inf]]
    assert found.tokens.tolist() == [[1, 3, 0, 2]]
    assert found.documents.tolist() == [[51, 53, 50, 52]]
    assert found.positions.tolist() == [[8, 10, 7, 9]]
    assert found.keys is not None
    assert found.keys[0, :, 0].tolist() == [1, 3, 0, 2]


def test_sorting_clamps_negative_rounding() -> None:
    assert rows(1, -1e-7, 2).sorted().distances.tolist() == [[0, 1, 2]]
    assert rows(-1e-7, 1).sorted().distances.tolist() == [[0, 1]]


def test_ties_keep_their_order() -> None:
    assert rows(3, 1, 1, 0, 1).sorted().tokens.tolist() == [[3, 1, 2, 4, 0]]


def test_padding_and_cutting() -> None:
    found = rows(1, 2)
    wide = found.padded(4)
    assert wide.distances.tolist() == [[1, 2, np.inf, np.inf]]
    assert wide.tokens.tolist() == [[0, 1, -1, -1]]
    assert wide.ids.tolist() == [[57, 59, -1, -1]]
    assert wide.keys is not None
    assert wide.keys[0, :, 0].tolist() == [0, 1, 0, 0]
    assert wide.padded(2).tokens.tolist() == [[0, 1]]
    assert replace(found, keys=None).padded(3).keys is None


def test_queries_stay_with_their_rows() -> None:
    queries = np.array([[1.0], [2.0], [3.0]], np.float32)
    found = replace(Neighbours.none(3, 2), queries=queries)
    for cut in (
        found.padded(5),
        found.padded(1),
        found.sorted(),
        found.taken(np.zeros((3, 1), int)),
    ):
        assert cut.queries is queries
    for rows in (slice(1, 3), np.array([1, 2]), np.array([False, True, True])):
        part = found[rows].queries
        assert part is not None
        assert part.tolist() == [[2.0], [3.0]]
    assert Neighbours.none(3, 2)[:1].queries is None


def test_rows_of_padding() -> None:
    none = Neighbours.none(2, 3, dimension=4)
    assert none.distances.tolist() == [[np.inf] * 3] * 2
    assert none.ids.tolist() == [[-1] * 3] * 2
    assert none.keys is not None
    assert none.keys.shape == (2, 3, 4)
    assert Neighbours.none(2, 3).keys is None
    assert none[:1].distances.shape == (1, 3)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=8),
        elements=st.floats(-1, 100, width=32) | st.just(np.inf),
    ),
    st.integers(1, 12),
)
def test_sorted_then_padded_is_what_numpy_sorts(distances: np.ndarray, k: int) -> None:
    tokens = np.broadcast_to(np.arange(distances.shape[1]), distances.shape).astype(np.int64)
    found = Neighbours(distances, tokens, tokens, tokens).sorted().padded(k)
    expected = np.sort(np.maximum(distances, 0), axis=1)[:, :k]
    assert (found.distances[:, : expected.shape[1]] == expected).all()
    assert (found.distances[:, expected.shape[1] :] == np.inf).all()
    real = found.tokens >= 0
    row, _ = np.nonzero(real)
    assert (np.maximum(distances, 0)[row, found.tokens[real]] == found.distances[real]).all()


@given(st.lists(st.integers(0, 20)), hnp.arrays(np.int64, (3, 4), elements=st.integers(-1, 22)))
def test_filter_mask_is_membership(documents: list[int], asked: np.ndarray) -> None:
    inside = [[number in documents for number in row] for row in asked.tolist()]
    keep, leave = DocumentFilter.keeping(documents), DocumentFilter.leaving_out(documents)
    assert keep.mask(asked).tolist() == inside
    assert (leave.mask(asked) == ~keep.mask(asked)).all()


def test_filter_of_large_numbers() -> None:
    near = int64(2**62, 2**62 + 1)
    assert DocumentFilter.keeping([2**62]).mask(near).tolist() == [True, False]


@pytest.mark.parametrize("dimension", [0, -1])
def test_dimension_must_be_positive(dimension: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1, not {dimension}"):
        check_dimension(dimension)


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        (Location("memory", "", "memory"), "memory:"),
        (Location("faiss", "stores", "law"), "faiss:stores/law"),
        (Location("faiss", "/", "law"), "faiss:/law"),
        (Location("qdrant", "host:6333", "law", network=True), "qdrant://host:6333/law"),
    ],
)
def test_location_prints_its_uri(location: Location, uri: str) -> None:
    assert str(location) == uri
