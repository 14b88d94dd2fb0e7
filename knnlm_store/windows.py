"""From a document's tokens to the windows a model reads, and from windows to padded batches.

A document is its start token followed by its n tokens. Input position i (0 is the start token)
holds the context that token i follows, so inputs 0..n-1 predict tokens 0..n-1. Windows overlap
by half, so that every position but a document's first ones has half a window of left context,
and each position is new in exactly one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from knnlm_store.values import Int64

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Window(Generic[Owner]):
    """Inputs `begin`..`end` of a document, of which `new`..`end` are read for the first time.

    inputs: int64 `[end - begin]`. targets: int64 `[end - new]`, the tokens at the new positions.
    """

    owner: Owner
    begin: int
    new: int
    end: int
    inputs: Int64
    targets: Int64


def windows(owner: Owner, start: int, tokens: Int64, size: int) -> Iterator[Window[Owner]]:
    """Cut a document, int64 `[n]`, into windows of at most `size` inputs, stride size // 2."""
    inputs = np.concatenate([[start], tokens[:-1]]).astype(np.int64)
    begin = new = 0
    while new < len(tokens):
        end = min(begin + size, len(tokens))
        yield Window(owner, begin, new, end, inputs[begin:end], tokens[new:end])
        begin, new = begin + size - size // 2, end


@dataclass(frozen=True, slots=True)
class Batch(Generic[Owner]):
    """Windows of similar length, padded on the right.

    input_ids, attention_mask: int64 `[b, t]`, padding 0 in both.
    """

    windows: list[Window[Owner]]
    input_ids: Int64
    attention_mask: Int64


def batches(
    stream: Iterable[Window[Owner]], token_budget: int, lookahead: int = 4
) -> Iterator[Batch[Owner]]:
    """Group windows into batches of at most `token_budget` padded inputs (or one window).

    Looks `lookahead` batches ahead to put similar lengths together; memory is bounded by that.
    """
    waiting: list[Window[Owner]] = []
    held = 0
    for window in stream:
        waiting.append(window)
        held += len(window.inputs)
        if held >= lookahead * token_budget:
            yield from _by_length(waiting, token_budget)
            waiting, held = [], 0
    yield from _by_length(waiting, token_budget)


def _by_length(waiting: list[Window[Owner]], token_budget: int) -> Iterator[Batch[Owner]]:
    rows: list[Window[Owner]] = []
    for window in sorted(waiting, key=lambda w: -len(w.inputs)):
        if rows and (len(rows) + 1) * len(rows[0].inputs) > token_budget:
            yield _pad(rows)
            rows = []
        rows.append(window)
    if rows:
        yield _pad(rows)


def _pad(rows: list[Window[Owner]]) -> Batch[Owner]:
    width = max(len(w.inputs) for w in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, window in enumerate(rows):
        input_ids[row, : len(window.inputs)] = window.inputs
        attention_mask[row, : len(window.inputs)] = 1
    return Batch(rows, input_ids, attention_mask)
