"""The policies that are tried, each with what it takes to fit one to some tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Fixed, LambdaPolicy
from knnlm_store.policies import Bucketed, Ratio
from knnlm_store.tuning.learn import learn
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.table import Table
from knnlm_store.values import Int64

Fit: TypeAlias = Callable[[Table, Int64], LambdaPolicy]

BUCKETS = (8, 16, 32)
ALPHAS, TAUS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)
STRENGTH = 10.0
"""Tokens' worth of the lambda of all that each bucket starts from."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to fit a policy: at a temperature, `fit(table, rows)` gives it."""

    family: str
    temperature: float
    fit: Fit


def fixed(temperature: float) -> Candidate:
    """One lambda, as everybody else's kNN-LM fits it: foreign text has no say."""

    def fit(table: Table, rows: Int64) -> LambdaPolicy:
        rows = rows[table.home[rows] & table.found[rows]]
        return Fixed(best_lambda(table.log_knn(temperature)[rows], table.sample.log_lm[rows]))

    return Candidate("fixed", temperature, fit)


def bucketed(temperature: float, number: int) -> Candidate:
    """Lambda by nearest distance, in at most `number` buckets."""
    return Candidate(
        "bucketed", temperature, lambda table, rows: fit_buckets(table, rows, temperature, number)
    )


def ratio(temperature: float, alpha: float, tau: float) -> Candidate:
    """The ratio rule; there is nothing to fit to rows."""
    return Candidate("ratio", temperature, lambda _table, _rows: Ratio(alpha, tau))


def learned(temperature: float, seed: int) -> Candidate:
    """A gate."""
    return Candidate(
        "learned", temperature, lambda table, rows: learn(table, rows, temperature, seed)
    )


def fit_buckets(table: Table, rows: Int64, temperature: float, number: int) -> Bucketed:
    """Part tokens into at most `number` buckets of equal count, and fit lambda in each.

    Each bucket's lambda is drawn towards that of all, as if 10 more tokens spoke for it: a bucket
    with few tokens says little of its own. Equal distances are never parted.
    """
    rows = rows[table.found[rows]]
    log_knn, log_lm = table.log_knn(temperature)[rows], table.sample.log_lm[rows]
    near, counts = table.nearest[rows], table.counts[rows]
    overall = best_lambda(log_knn, log_lm, counts)
    inner = np.quantile(near, np.arange(1, number) / number) if len(near) else np.empty(0)
    edges: Float64 = np.unique(inner[inner > near.min(initial=np.inf)])
    place = np.searchsorted(edges, near, side="right")
    lambdas = [
        best_lambda(
            log_knn[place == b],
            log_lm[place == b],
            counts[place == b],
            prior=overall,
            strength=STRENGTH,
        )
        for b in range(len(edges) + 1)
    ]
    return Bucketed(edges, np.array(lambdas))
