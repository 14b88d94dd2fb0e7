"""The weights that make held-out tokens most likely.

The log-likelihood of tokens with probabilities a_i (neighbours) and b_i (model),

    L(lambda) = sum_i log(lambda a_i + (1 - lambda) b_i),

is concave in lambda: bisection on its derivative finds the one maximum, and so does EM, which
also serves for more than two components (Jelinek and Mercer 1980; Drozdov et al. 2022, section 4,
apply the former to buckets of nearest distance).
"""

from __future__ import annotations

import numpy as np

from knnlm_store.interpolation import Float64, logsumexp

_STEPS = 60  # halvings of 0..1: more than float64 can tell apart
_ROUNDS, _ENOUGH = 10_000, 1e-12  # EM: rounds at most, and the gain a token at which it ends


def best_lambda(
    log_knn: Float64,
    log_lm: Float64,
    counts: Float64 | None = None,
    *,
    prior: float = 0.5,
    strength: float = 0.0,
) -> float:
    """Find lambda by bisection: log p_kNN and log p_LM of n tokens, float64 `[n]`, in.

    counts: how often each token counts, `[n]`. strength: how many tokens' worth of belief that
    lambda is `prior` (a Beta prior), which keeps few tokens from deciding much. Without tokens or
    belief it is 0.
    """
    counts = np.ones(len(log_lm)) if counts is None else counts
    told = (counts > 0) & ~(np.isneginf(log_knn) & np.isneginf(log_lm))  # else: lambda is no matter
    log_knn, log_lm, counts = log_knn[told], log_lm[told], counts[told]
    gain = np.expm1(np.minimum(log_knn - log_lm, 700.0))  # a / b - 1, at least -1
    if not counts.sum() + strength:
        return 0.0

    def slope(lmbda: float) -> float:
        with np.errstate(divide="ignore"):
            each = gain / (lmbda * gain + 1)
        against = (1 - prior) / max(1 - lmbda, 1e-300)
        belief = strength * (prior / lmbda - against) if strength else 0.0
        return float((counts * each).sum() + belief)

    if not strength:
        if slope(0.0) <= 0:
            return 0.0
        if slope(1.0) >= 0:
            return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def best_weights(log_components: Float64, counts: Float64 | None = None) -> Float64:
    """Find mixture weights by EM: log-probabilities of n tokens, `[n, m]`, to weights `[m]`.

    A token that no component thinks possible is left out. Equal weights without tokens.
    """
    m = log_components.shape[1]
    counts = np.ones(len(log_components)) if counts is None else counts
    told = np.isfinite(log_components).any(axis=1) & (counts > 0)
    log_p, shares = log_components[told], counts[told] / max(counts[told].sum(), 1e-300)
    weights = np.full(m, 1 / m)
    before = -np.inf
    for _ in range(_ROUNDS if len(log_p) else 0):
        with np.errstate(divide="ignore"):
            joint = log_p + np.log(weights)
        total = logsumexp(joint)
        weights = (shares[:, None] * np.exp(joint - total[:, None])).sum(axis=0)
        now = float((shares * total).sum())
        if now - before < _ENOUGH:
            break
        before = now
    result: Float64 = weights / weights.sum()
    return result
