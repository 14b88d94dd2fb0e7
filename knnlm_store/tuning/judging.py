"""What a policy does to text that it was not fitted to, at home and elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from knnlm_store.interpolation import Float64, mix
from knnlm_store.tuning.folds import Sources
from knnlm_store.tuning.foreign import source_of
from knnlm_store.tuning.sample import Sample
from knnlm_store.tuning.table import Table
from knnlm_store.values import Int64

if TYPE_CHECKING:  # it trains gates, and so needs torch
    from knnlm_store.tuning.families import Candidate

HARM = 0.005
"""Share by which foreign text may grow harder, in perplexity."""
LEAST = 0.001
"""Share of perplexity that a policy must gain where documents are too few to tell its error."""

_DOCUMENTS = 8  # that a standard error takes
_HALVINGS = 30


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a policy does on tokens it was not fitted to.

    log_p: of all tokens of a table, float64 `[n]`. home: nats a token of the text to fit. harms:
    by source of foreign text, nats a token more than the plain model's. share: of the policy's
    mixture that all this is of, the rest being the plain model's.
    """

    log_p: Float64
    home: float
    harms: Mapping[str, float]
    share: float

    @property
    def harm(self) -> float:
        """The worst source's; 0 without foreign text."""
        return max(self.harms.values(), default=0.0)


def sources_of(foreign: Sample, first: int) -> Sources:
    """Rows of each source of foreign text, in a table where it begins at row `first`."""
    of = np.array([source_of(name) for name in foreign.names])[foreign.documents]
    return {str(source): first + np.flatnonzero(of == source) for source in np.unique(of)}


def judge(
    table: Table, candidate: Candidate, folds: list[Int64], sources: Sources, *, cure: bool
) -> Judgement:
    """Fit on all folds but one, score that one.

    cure: damp the policy as far as it takes for no source to be harmed by over HARM.
    """
    log_lm = table.sample.log_lm
    log_p: Float64 = np.empty(len(log_lm))
    for number, fold in enumerate(folds):
        others = np.concatenate([f for i, f in enumerate(folds) if i != number])
        policy = candidate.fit(table, others)
        log_p[fold] = table.log_p_under(policy, candidate.temperature, fold)
    share = bearable(log_p, log_lm, sources) if cure else 1.0
    log_p = mix(log_p, log_lm, np.asarray(share))
    harms = {name: _harm(log_p[rows], log_lm[rows]) for name, rows in sources.items()}
    return Judgement(log_p, float(-log_p[table.home].mean()), harms, share)


def bearable(log_p: Float64, log_lm: Float64, sources: Sources) -> float:
    """Find the largest share of a mixture that harms no source by over HARM, by bisection.

    p is linear in the share, so harm is convex in it, and 0 at 0: it crosses the bound once.
    """
    parts = [(log_p[rows], log_lm[rows]) for rows in sources.values()]

    def is_borne(share: float) -> bool:
        harms = (_harm(mix(mine, plain, np.asarray(share)), plain) for mine, plain in parts)
        return max(harms, default=0.0) <= float(np.log1p(HARM))

    if is_borne(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if is_borne(middle):
            low = middle
        else:
            high = middle
    return low


def margin(log_p: Float64, log_lm: Float64, documents: Int64) -> float:
    """Nats a token by which a policy must better the plain model before it counts as paying.

    The standard error of the mean gain: each token under both, and documents as what was drawn,
    for tokens of one document are no independent witnesses. LEAST where these are too few.
    """
    _, owner = np.unique(documents, return_inverse=True)
    n = int(owner.max(initial=-1)) + 1
    if n < _DOCUMENTS:
        return float(np.log1p(LEAST))
    with np.errstate(invalid="ignore"):  # an impossible token: the gain is -inf, and does not pay
        gain = log_p - log_lm
        each = np.bincount(owner, gain - gain.mean())
    return float(np.sqrt(n / (n - 1) * (each**2).sum()) / len(gain))


def _harm(log_p: Float64, log_lm: Float64) -> float:
    return float((log_lm - log_p).mean())
