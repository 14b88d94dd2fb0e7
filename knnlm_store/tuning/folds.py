"""Parts of tokens that share no document: fitted on all but one, judged on that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Int64

FOLDS = 4
FEWEST = 8
"""Documents below which parts of whole ones would be too unequal to be judged by."""

Sources: TypeAlias = Mapping[str, Int64]
"""Rows of a table by the source of foreign text they belong to."""


def folds_of(documents: Int64, home: NDArray[np.bool_], sources: Sources, seed: int) -> list[Int64]:
    """Part rows into FOLDS, or as many as there are sources; each has its share of the text to fit.

    Of foreign text a fold has one whole source at most, so that each is judged by fits that saw
    all others and none of it; where there is but one source, it is parted by documents as well.
    """
    count = max(FOLDS, len(sources))
    own = parted(np.flatnonzero(home), documents, count, seed)
    if len(sources) > 1:
        none = np.empty(0, np.int64)
        foreign = [*sources.values(), *[none] * (count - len(sources))]
    else:
        foreign = parted(np.flatnonzero(~home), documents, count, seed)
    return [np.concatenate(both) for both in zip(own, foreign, strict=True)]


def parted(
    rows: Int64, documents: Int64, count: int, seed: int, fewest: int = FEWEST
) -> list[Int64]:
    """Part some rows so that parts share no document; by runs of rows where these are fewer."""
    names, counts = np.unique(documents[rows], return_counts=True)
    if len(names) < max(fewest, count):
        return np.array_split(rows, count)
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = np.empty(len(names), np.int64)
    sizes = np.zeros(count)
    for name in order[np.argsort(-counts[order], kind="stable")]:  # the largest first
        fold_of[name] = sizes.argmin()
        sizes[fold_of[name]] += counts[name]
    part = fold_of[np.searchsorted(names, documents[rows])]
    return [rows[part == number] for number in range(count)]
