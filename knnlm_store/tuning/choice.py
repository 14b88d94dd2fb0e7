"""(torch) Which k, which temperature, which policy: fitted on some documents, judged on others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Mixture
from knnlm_store.policies import damped
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
from knnlm_store.tuning.folds import folds_of
from knnlm_store.tuning.judging import HARM, Judgement, judge, margin, sources_of
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table

FAMILIES = ("fixed", "bucketed", "ratio", "learned")
FOREIGN = 2.0
"""Weight of all foreign tokens together in a fit, relative to that of the text itself."""
LEARNT_FROM = 2000
"""Tokens that a gate takes: fewer it would learn by heart."""

_STEPS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)  # times the data's own T


@dataclass(frozen=True, slots=True)
class Choice:
    """What came out of a family: a mixture fitted on everything, and how it does where it was not.

    home: nats a token. harm: on the source of foreign text that suffers most, nats a token more
    than the plain model's; harms: on each. margin: nats that it must gain at home to count. share:
    to which it was damped, so that no source suffers more than it may. log_p: of the tokens at
    home, under fits that did not see them, float64 `[n]`.
    """

    family: str
    mixture: Mixture
    home: float
    harm: float
    margin: float = 0.0
    share: float = 1.0
    harms: Mapping[str, float] = field(default_factory=dict)
    log_p: Float64 = field(default_factory=lambda: np.empty(0), compare=False)


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

    Each but the fixed one, which is fitted as everybody fits it, is damped to do no harm.
    temperature: where the search for the best one starts.
    """
    sample = home if foreign is None else joined([home, foreign])
    is_home = np.arange(len(sample)) < len(home)
    table = Table(sample, k, is_home, FOREIGN)
    sources = {} if foreign is None else sources_of(foreign, len(home))
    folds = folds_of(sample.documents, is_home, sources, seed)
    tried: dict[str, tuple[Judgement, Candidate]] = {}

    def attempt(candidate: Candidate) -> None:
        family = candidate.family
        judged = judge(table, candidate, folds, sources, cure=family != "fixed")
        if family not in tried or judged.home < tried[family][0].home:
            tried[family] = judged, candidate

    for step in _STEPS:
        attempt(fixed(temperature * step))
        for number in BUCKETS:
            attempt(bucketed(temperature * step, number))
    temperature = tried["bucketed"][1].temperature
    for alpha, tau in product(ALPHAS, TAUS):
        attempt(ratio(temperature, alpha, tau))
    if len(home) >= LEARNT_FROM:
        attempt(learned(temperature, seed))
    return [_chosen(table, home, *tried[family]) for family in FAMILIES if family in tried]


def _chosen(table: Table, home: Sample, judged: Judgement, candidate: Candidate) -> Choice:
    """Fit a candidate once more, to everything."""
    policy = damped(candidate.fit(table, np.arange(len(table.sample))), judged.share)
    log_p = judged.log_p[table.home]
    return Choice(
        candidate.family,
        Mixture(table.k, candidate.temperature, policy),
        judged.home,
        judged.harm,
        margin(log_p, home.log_lm, home.documents),
        judged.share,
        judged.harms,
        log_p,
    )


def best(choices: list[Choice], plain: float) -> Choice | None:
    """Pick the family that does best at home of those that pay and do no harm; None if none does.

    plain: nats a token of the plain model at home.
    """
    pays = [
        each for each in choices if each.home < plain - each.margin and each.harm <= np.log1p(HARM)
    ]
    return min(pays, key=lambda each: each.home, default=None)
