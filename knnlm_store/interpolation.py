"""Neighbours -> p_kNN -> mixture: the equations, sparse, in NumPy.

Khandelwal et al. 2020, eq. 2 and 3, in log space, with squared L2 distance d_i, token v_i and
temperature T of each neighbour i:

    s_i = -d_i / T        logZ = logsumexp(s)
    log p_kNN(y) = logsumexp over i with v_i = y of (s_i - logZ)
    log p(y) = logaddexp(log lambda + log p_kNN(y), log(1 - lambda) + log p_LM(y))

Only the neighbours' tokens are touched: O(k) a row. Sums run in float64, where no distance that
float32 can hold underflows to a wrong zero.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Float32, Int64

Float64: TypeAlias = NDArray[np.float64]


def neighbour_log_weights(distances: Float32, temperature: float) -> Float64:
    """Log of each neighbour's share of p_kNN, float64 `[q, k]`; padding and empty rows -inf."""
    wide = distances.astype(np.float64)
    nearest = wide.min(axis=1, initial=np.inf, keepdims=True)
    # relative to the nearest: far from all of them, float64 would lose what tells them apart
    s = -(wide - np.where(np.isfinite(nearest), nearest, 0.0)) / temperature
    log_z = logsumexp(s)[:, None]
    return s - np.where(np.isneginf(log_z), 0.0, log_z)


def logsumexp(values: Float64) -> Float64:
    """Log of the sum of exp over each row, `[q, k]` to `[q]`; -inf for a row of -inf."""
    top = values.max(axis=1, initial=-np.inf)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        total: Float64 = safe + np.log(np.exp(values - safe[:, None]).sum(axis=1))
    return total


def token_log_probs(log_weights: Float64, tokens: Int64) -> Float64:
    """Log p_kNN of every neighbour's token, float64 `[q, k]`; places of one token agree.

    log_weights: log of each neighbour's share of p_kNN, `[q, k]`.
    """
    rows, k = tokens.shape
    if not rows * k:
        return np.empty((rows, k))
    order = np.argsort(tokens, axis=1, kind="stable")
    sorted_tokens = np.take_along_axis(tokens, order, axis=1)
    first = np.ones((rows, k), dtype=bool)
    first[:, 1:] = sorted_tokens[:, 1:] != sorted_tokens[:, :-1]
    sums = np.logaddexp.reduceat(
        np.take_along_axis(log_weights, order, axis=1).ravel(), np.flatnonzero(first)
    )
    groups = np.cumsum(first).reshape(rows, k) - 1
    result = np.empty((rows, k))
    np.put_along_axis(result, order, sums[groups], axis=1)
    return result


def target_log_probs(log_weights: Float64, tokens: Int64, targets: Int64) -> Float64:
    """Log p_kNN of one token a row: targets int64 `[q]` to float64 `[q]`; -inf if no neighbour.

    log_weights: log of each neighbour's share of p_kNN, `[q, k]`.
    """
    return logsumexp(np.where(tokens == targets[:, None], log_weights, -np.inf))


def mix(log_knn: Float64, log_lm: Float64, lmbda: Float64) -> Float64:
    """Log of lambda * p_kNN + (1 - lambda) * p_LM, elementwise; lambda 0 gives log_lm itself."""
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log(lmbda) + log_knn, np.log1p(-lmbda) + log_lm)
    return np.where(lmbda == 0, log_lm, mixed)
