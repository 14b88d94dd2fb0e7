"""Windows and batches: every token once, with the promised context, nothing shared or lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from knnlm_store.windows import batches, windows


@given(st.integers(1, 300), st.integers(2, 64))
def test_every_position_is_new_once(n: int, size: int) -> None:
    tokens = np.arange(100, 100 + n)
    cut = list(windows("doc", 7, tokens, size))
    inputs = np.concatenate([[7], tokens[:-1]])
    assert [p for w in cut for p in range(w.new, w.end)] == list(range(n))
    for window in cut:
        assert window.end - window.begin <= size
        np.testing.assert_array_equal(window.inputs, inputs[window.begin : window.end])
        np.testing.assert_array_equal(window.targets, tokens[window.new : window.end])
        assert window.begin == 0 or window.new - window.begin >= size // 2


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.integers(1, 5))
def test_batches_keep_every_window_within_the_budget(
    lengths: list[int], budget: int, lookahead: int
) -> None:
    stream = [w for i, n in enumerate(lengths) for w in windows(i, 0, np.arange(1, n + 1), 40)]
    made = list(batches(stream, budget, lookahead))
    assert sorted(w.owner for b in made for w in b.windows) == sorted(w.owner for w in stream)
    for batch in made:
        assert batch.input_ids.size <= budget or len(batch.windows) == 1
        for row, window in enumerate(batch.windows):
            n = len(window.inputs)
            np.testing.assert_array_equal(batch.input_ids[row, :n], window.inputs)
            assert batch.attention_mask[row].sum() == n
            assert batch.attention_mask[row, :n].all()


def test_batches_are_lazy() -> None:
    """Memory does not grow with the corpus: no more than the lookahead is read ahead."""
    taken = 0

    def stream() -> object:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield from windows(i, 0, np.arange(10), 10)

    next(batches(stream(), 20, lookahead=4))  # type: ignore[arg-type]
    assert taken <= 8
