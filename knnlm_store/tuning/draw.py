"""An even share of every document, so that no long one is all that is looked at."""

from __future__ import annotations

import numpy as np

from knnlm_store.values import Int64

SHARE = 256
"""Tokens of a document, if it has them: fewer would all be those that documents begin with."""

_GOLDEN = (5**0.5 - 1) / 2


def shares(lengths: Int64, most: int) -> Int64:
    """How many tokens to take of documents with so many, int64 `[n]`; `most` in all.

    All of them where that is enough; else the same of each, short ones whole. Where that would be
    less than SHARE, some documents are passed over, and those that are left are spread evenly.
    """
    if lengths.sum() <= most:
        return lengths
    wanted = np.minimum(lengths, max(_level(lengths, most), SHARE))
    order = np.argsort(np.arange(len(lengths)) * _GOLDEN % 1)  # however few come first are spread
    before = np.cumsum(wanted[order]) - wanted[order]
    taken = np.empty_like(wanted)
    taken[order] = np.clip(most - before, 0, wanted[order])
    return taken


def _level(lengths: Int64, most: int) -> int:
    """Find the fewest tokens of each document that are `most` or more in all."""
    ascending = np.sort(lengths)
    shorter = np.cumsum(ascending) - ascending
    others = np.arange(len(lengths), 0, -1)
    place = int(np.searchsorted(shorter + ascending * others, most))
    return -(-(most - int(shorter[place])) // int(others[place]))
