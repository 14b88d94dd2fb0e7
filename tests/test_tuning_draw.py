"""An even share of every document."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.tuning.draw import SHARE, shares


def drawn(lengths: list[int], most: int) -> list[int]:
    taken: list[int] = shares(np.array(lengths, np.int64), most).tolist()
    return taken


@given(st.lists(st.integers(0, 3000), max_size=60), st.integers(1, 40_000))
@settings(max_examples=200, deadline=None)
def test_as_much_as_there_may_be(lengths: list[int], most: int) -> None:
    """Nothing is left where there is room; no document gives much less than a longer one."""
    taken = drawn(lengths, most)
    assert sum(taken) == min(sum(lengths), most)
    assert all(0 <= some <= whole for some, whole in zip(taken, lengths, strict=True))
    assert taken == drawn(lengths, most)
    cut = sorted(some for some, whole in zip(taken, lengths, strict=True) if some < whole)
    full = max(taken, default=0)
    between = [some for some in cut if 0 < some < full]
    assert len(between) <= 1  # that got the last tokens
    if full > SHARE:
        assert 0 not in cut[1:]


def test_a_long_document_is_not_all() -> None:
    assert drawn([100_000, 400, 300, 500], 3000) == [1800, 400, 300, 500]
    assert drawn([50_000] * 10, 30_000) == [3000] * 10
    assert drawn([100, 200], 300) == [100, 200]
    assert drawn([], 300) == []


def test_too_many_documents_are_passed_over_evenly() -> None:
    """What is taken of one is worth a look; there is as much from each stretch of the corpus."""
    taken = np.array(drawn([1000] * 1000, 30_000))
    used = np.flatnonzero(taken)
    assert (taken[used][:-1] == SHARE).sum() >= len(used) - 2
    assert len(used) == -(-30_000 // SHARE)
    by_stretch = np.histogram(used, bins=10, range=(0, 1000))[0]
    assert by_stretch.min() >= 10
    assert by_stretch.max() <= 13
    gaps = np.diff(used)
    assert gaps.max() <= 3 * gaps.min()
