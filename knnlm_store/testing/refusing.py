"""What a backend must refuse: our error, with a message, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.errors import InvalidEntries, UsageError
from knnlm_store.testing.base import Base, write
from knnlm_store.testing.truth import DIMENSION, FAR, batch, clustered, line
from knnlm_store.values import MAX_ID, MAX_TOKEN, Entries, Float32, Int64


def _keys_with(value: float) -> Float32:
    keys = line(2)
    keys[1, 3] = value
    return keys


def _int64(*values: int) -> Int64:
    return np.array(values, dtype=np.int64)


_TWO = f"[2, {DIMENSION}]"
WRONG_ENTRIES: dict[str, tuple[Callable[[Entries], Entries], str]] = {
    "too wide": (lambda e: replace(e, keys=np.zeros((2, DIMENSION + 1), np.float32)), _TWO),
    "too narrow": (lambda e: replace(e, keys=e.keys[:, :-1]), _TWO),
    "flat": (lambda e: replace(e, keys=e.keys.ravel()), _TWO),
    "a key too many": (lambda e: replace(e, keys=line(3)), _TWO),
    "float64": (lambda e: replace(e, keys=e.keys.astype(np.float64)), "float64"),
    "float16": (lambda e: replace(e, keys=e.keys.astype(np.float16)), "float16"),
    "NaN": (lambda e: replace(e, keys=_keys_with(np.nan)), "NaN or infinite"),
    "inf": (lambda e: replace(e, keys=_keys_with(np.inf)), "NaN or infinite"),
    "-inf": (lambda e: replace(e, keys=_keys_with(-np.inf)), "NaN or infinite"),
    "squares overflow": (lambda e: replace(e, keys=_keys_with(1e19)), "overflow float32"),
    "token too large": (lambda e: replace(e, tokens=_int64(1, MAX_TOKEN + 1)), "Token ids"),
    "negative token": (lambda e: replace(e, tokens=_int64(1, -1)), "Token ids"),
    "token of float": (lambda e: replace(e, tokens=e.tokens.astype(np.float64)), "tokens must be"),
    "token matrix": (lambda e: replace(e, tokens=e.tokens[:, None]), "tokens must be"),
    "negative document": (lambda e: replace(e, documents=_int64(-1, 5)), "documents must not"),
    "document too many": (lambda e: replace(e, documents=_int64(1, 2, 3)), "documents must be"),
    "document of float": (
        lambda e: replace(e, documents=e.documents.astype(float)),
        "documents must be",
    ),
    "negative position": (lambda e: replace(e, positions=_int64(-1, 5)), "positions must not"),
    "position of int32": (
        lambda e: replace(e, positions=e.positions.astype(np.int32)),
        "positions must be",
    ),
    "id beyond int63": (lambda e: replace(e, documents=_int64(MAX_ID, MAX_ID)), "exceeds"),
    "id twice": (lambda e: replace(e, positions=_int64(4, 4)), "stands twice"),
    "id of two documents": (
        lambda e: replace(e, documents=_int64(6, 4), positions=_int64(0, 2)),
        "stands twice",
    ),
}
"""What spoils a good batch of two entries, and words of the refusal."""

WRONG_QUERIES: dict[str, tuple[Float32, str]] = {
    "too wide": (np.zeros((1, DIMENSION + 1), np.float32), "Queries have shape"),
    "flat": (np.zeros(DIMENSION, np.float32), "Queries have shape"),
    "a cube": (np.zeros((1, 1, DIMENSION), np.float32), "Queries have shape"),
    "NaN": (_keys_with(np.nan), "NaN or infinite"),
    "inf": (_keys_with(np.inf), "NaN or infinite"),
    "squares overflow": (_keys_with(1e19), "overflow float32"),
}


class Refusing(Base):
    """Tests of calls that must fail and change nothing."""

    @pytest.mark.parametrize("case", WRONG_ENTRIES)
    def test_wrong_entries_are_refused(self, store: VectorBackend, case: str) -> None:
        """Nothing of the batch is written, and what was there stays."""
        spoil, words = WRONG_ENTRIES[case]
        before = write(store, batch(FAR, clustered(6, seed=1)))
        with pytest.raises(InvalidEntries) as refusal:
            store.upsert(spoil(batch(77, line(2))))
        assert words in str(refusal.value)
        store.flush()
        assert store.count() == 6
        self.check(store, before, line(2), k=9)

    def test_keys_beyond_float16_are_refused(self, store: VectorBackend) -> None:
        """Where keys are kept in float16; elsewhere they are found."""
        large = write(store, batch(FAR, line(2) * np.float32(65504)))
        beyond = batch(FAR + 9, line(2) * np.float32(65536))
        if store.spec().storage != "float16":
            large = Entries.concatenate([large, write(store, beyond)])
        else:
            with pytest.raises(InvalidEntries, match="65504"):
                store.upsert(beyond)
        self.check(store, large, line(2), k=9)

    @pytest.mark.parametrize("case", WRONG_QUERIES)
    def test_wrong_queries_are_refused(self, store: VectorBackend, case: str) -> None:
        """No neighbours of something that is no key."""
        queries, words = WRONG_QUERIES[case]
        write(store, batch(FAR, line(2)))
        with pytest.raises(InvalidEntries) as refusal:
            store.search(queries, 1)
        assert words in str(refusal.value)

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_one_is_refused(self, store: VectorBackend, k: int) -> None:
        """Also where there is nothing to find."""
        with pytest.raises(UsageError, match="k must be at least 1"):
            store.search(line(1), k)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_below_one_is_refused(self, store: VectorBackend, batch_size: int) -> None:
        """A scan that yields nothing would pass for an empty datastore."""
        write(store, batch(FAR, line(2)))
        with pytest.raises(UsageError, match="batch_size must be at least 1"):
            list(store.scan(batch_size=batch_size))
