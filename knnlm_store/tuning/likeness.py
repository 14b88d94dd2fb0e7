"""Whether a query is of the text to fit or of foreign text: a line through the key space.

Ridge regression of 1 (like) and -1 (unlike) on the query. Hidden states tell domains apart so well
that a gate would believe this more than it should, were it shown the ratings of queries that the
line was fitted to: each is rated by a line that saw nothing of its document.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from knnlm_store.gate import Likeness
from knnlm_store.interpolation import Float64
from knnlm_store.tuning.folds import parted
from knnlm_store.tuning.table import Table
from knnlm_store.values import Float32, Int64

RIDGE = 100.0
"""Times the mean variance of a component: so strong that domains never seen look unlike as well."""

_PARTS, _ROWS = 5, 4096


def fit_likeness(table: Table, rows: Int64, seed: int = 0) -> tuple[Likeness | None, Float64]:
    """Fit to some rows of a table; gives it, and each row's rating by a fit without its document.

    None, with empty ratings, where queries are not known or text is of one kind only.
    """
    queries, home = table.sample.evidence.queries, table.home[rows]
    if queries is None or home.all() or not home.any():
        return None, np.empty(0)
    documents = table.sample.documents[rows]
    fewest = min(len(np.unique(documents[kind])) for kind in (home, ~home))
    count = min(_PARTS, fewest) if fewest > 1 else _PARTS  # a single document is cut
    like, unlike = (
        parted(np.flatnonzero(kind), documents, count, seed, fewest=count) for kind in (home, ~home)
    )
    folds = [np.concatenate(both) for both in zip(like, unlike, strict=True)]
    sums = [_Sums.of(queries[rows[fold]], home[fold], table.counts[rows[fold]]) for fold in folds]
    whole = sum(sums[1:], sums[0])
    told: Float64 = np.empty(len(rows))
    for fold, mine in zip(folds, sums, strict=True):
        told[fold] = (whole - mine).line()(queries[rows[fold]])
    return whole.line(), told


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a line follows from, summed over tokens by their counts.

    n: of the counts; x, y: of queries `[d]` and labels; xx, xy: of their products, `[d, d]`, `[d]`.
    """

    n: float
    x: Float64
    y: float
    xx: Float64
    xy: Float64

    @classmethod
    def of(
        cls, queries: Float32, home: np.ndarray[tuple[int], np.dtype[np.bool_]], counts: Float64
    ) -> Self:
        d = queries.shape[1]
        label = np.where(home, 1.0, -1.0)
        x, xx, xy = np.zeros(d), np.zeros((d, d)), np.zeros(d)
        for start in range(0, len(queries), _ROWS):
            part = slice(start, start + _ROWS)
            wide = queries[part].astype(np.float64)
            weighted = wide * counts[part, None]
            x += weighted.sum(axis=0)
            xx += weighted.T @ wide
            xy += weighted.T @ label[part]
        return cls(float(counts.sum()), x, float((counts * label).sum()), xx, xy)

    def __add__(self, other: Self) -> Self:
        return self._with(other, 1.0)

    def __sub__(self, other: Self) -> Self:
        return self._with(other, -1.0)

    def _with(self, other: Self, times: float) -> Self:
        mine = (getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self))
        return type(self)(*mine)

    def line(self) -> Likeness:
        """Solve for the line."""
        x, y = self.x / self.n, self.y / self.n
        variance = self.xx / self.n - np.outer(x, x)
        ridge = RIDGE * max(float(np.trace(variance)) / len(x), 1e-12)
        slope = self.xy / self.n - y * x
        direction: Float64 = np.linalg.solve(variance + ridge * np.eye(len(x)), slope).astype(
            np.float64, copy=False
        )
        return Likeness(direction, float(y - x @ direction))
