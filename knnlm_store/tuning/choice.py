"""Which k, which temperature, which policy: fitted on some documents, judged on others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Mixture
from knnlm_store.tuning.families import (
    ALPHAS,
    BUCKETS,
    TAUS,
    Candidate,
    bucketed,
    fixed,
    learned,
    ratio,
)
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table
from knnlm_store.values import Int64

FAMILIES = ("fixed", "bucketed", "ratio", "learned")
HARM = 0.005
"""Share by which foreign text may grow harder, in perplexity."""
FOREIGN = 2.0
"""Weight of all foreign tokens together in a fit, relative to that of the text itself."""

_FOLDS = 4
_STEPS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)  # times the data's own T
_LEARNT_FROM = 2000  # tokens: a gate of fewer would learn them by heart


@dataclass(frozen=True, slots=True)
class Choice:
    """What came out of a family: a mixture fitted on everything, and how it does where it was not.

    home: nats a token. harm: on foreign text, nats a token more than the plain model's.
    """

    family: str
    mixture: Mixture
    home: float
    harm: float


def choose_k(sample: Sample, temperature: float, tolerance: float) -> tuple[int, dict[int, float]]:
    """Find the smallest k, a power of two, whose perplexity is within `tolerance` of the best.

    By the best fixed lambda and temperature of each k; gives perplexities by k as well.
    """
    most = sample.evidence.distances.shape[1]
    ks = sorted({2**i for i in range(3, 15) if 2**i < most} | {most})
    plain = float(np.exp(-sample.log_lm.mean()))
    perplexities: dict[int, float] = {}
    for k in ks:
        near, best = sample.nearest(k), plain
        for step in _STEPS:
            log_knn = near.log_knn(temperature * step)
            lmbda = best_lambda(log_knn, sample.log_lm)
            with np.errstate(divide="ignore"):
                parts = np.log(lmbda) + log_knn, np.log1p(-lmbda) + sample.log_lm
            best = min(best, float(np.exp(-np.logaddexp(*parts).mean())))
        perplexities[k] = best
    limit = (1 + tolerance) * min(perplexities.values())
    return next(k for k in ks if perplexities[k] <= limit), perplexities


def choose(
    home: Sample, foreign: Sample | None, k: int, temperature: float, seed: int = 0
) -> list[Choice]:
    """Fit every family, judged by cross-validation over documents; the order is FAMILIES'.

    temperature: where the search for the best one starts.
    """
    sample = home if foreign is None else joined([home, foreign])
    is_home = np.arange(len(sample)) < len(home)
    table = Table(sample, k, is_home, FOREIGN)
    folds = _folds(sample.documents, is_home, seed)
    tried: dict[str, tuple[float, float, Candidate]] = {}

    def attempt(candidate: Candidate) -> None:
        home, harm = _judge(table, candidate, folds)
        before = tried.get(candidate.family)
        if before is None or _rank(candidate, home, harm) < _rank(before[2], *before[:2]):
            tried[candidate.family] = home, harm, candidate

    for step in _STEPS:
        attempt(fixed(temperature * step))
        for number in BUCKETS:
            attempt(bucketed(temperature * step, number))
    temperature = tried["bucketed"][2].temperature
    for alpha, tau in product(ALPHAS, TAUS):
        attempt(ratio(temperature, alpha, tau))
    if len(home) >= _LEARNT_FROM:
        attempt(learned(temperature, seed))
    every = np.arange(len(sample))
    return [
        Choice(
            name,
            Mixture(k, candidate.temperature, candidate.fit(table, every)),
            home_score,
            harm,
        )
        for name, (home_score, harm, candidate) in sorted(
            tried.items(), key=lambda item: FAMILIES.index(item[0])
        )
    ]


def best(choices: list[Choice], plain: float) -> Choice | None:
    """Pick the family that did best at home without doing harm; None if none pays.

    plain: nats a token of the plain model at home. Where every one does harm, the least harmful
    that helps at home is taken.
    """
    helpful = [each for each in choices if each.home < plain]
    harmless = [each for each in helpful if each.harm <= np.log1p(HARM)]
    if harmless:
        return min(harmless, key=lambda each: each.home)
    return min(helpful, key=lambda each: each.harm, default=None)


def _rank(candidate: Candidate, home: float, harm: float) -> float:
    """Compare candidates of one family: what they do at home, and what harm beyond the bound.

    A fixed lambda always harms foreign text; it is fitted as everybody fits it.
    """
    if candidate.family == "fixed":
        return home
    return home + max(0.0, harm - float(np.log1p(HARM)))


def _judge(table: Table, candidate: Candidate, folds: list[Int64]) -> tuple[float, float]:
    """Fit on all folds but one, score that one: nats at home, harm on foreign text."""
    log_p: Float64 = np.empty(len(table.sample))
    for number, fold in enumerate(folds):
        others = np.concatenate([f for i, f in enumerate(folds) if i != number])
        policy = candidate.fit(table, others)
        log_p[fold] = table.log_p_under(policy, candidate.temperature, fold)
    home = table.home
    harm = (table.sample.log_lm - log_p)[~home].mean() if (~home).any() else 0.0
    return float(-log_p[home].mean()), float(harm)


def _folds(documents: Int64, home: NDArray[np.bool_], seed: int) -> list[Int64]:
    """Part rows into folds; every fold has its share of the text and of foreign text."""
    parts = [_parted(np.flatnonzero(mask), documents, seed) for mask in (home, ~home)]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _parted(rows: Int64, documents: Int64, seed: int) -> list[Int64]:
    """Part some rows so that parts share no document; by runs of rows where these are few."""
    names, counts = np.unique(documents[rows], return_counts=True)
    if len(names) < 2 * _FOLDS:
        return np.array_split(rows, _FOLDS)
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = np.empty(len(names), np.int64)
    sizes = np.zeros(_FOLDS)
    for name in order[np.argsort(-counts[order], kind="stable")]:  # the largest first
        fold_of[name] = sizes.argmin()
        sizes[fold_of[name]] += counts[name]
    part = fold_of[np.searchsorted(names, documents[rows])]
    return [rows[part == number] for number in range(_FOLDS)]
