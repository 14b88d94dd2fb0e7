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

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from knnlm_store.errors import UsageError
from knnlm_store.values import Float32, Int64, Neighbours

Float64: TypeAlias = NDArray[np.float64]


class LambdaPolicy(Protocol):
    """Decides how much each row trusts its neighbours."""

    @property
    def name(self) -> str:
        """Short name for reports."""
        ...

    def __call__(self, neighbours: Neighbours) -> Float64:
        """Give lambda in 0..1 for each row: float64 `[q]`."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same lambda for every row (Khandelwal et al. 2020)."""

    lmbda: float
    name: str = "fixed"

    def __post_init__(self) -> None:
        if not 0 <= self.lmbda <= 1:
            raise UsageError(
                f"lambda must lie in 0..1, not {self.lmbda}.",
                hint="0 is the plain model; 0.25 is a good first choice.",
            )

    def __call__(self, neighbours: Neighbours) -> Float64:
        """Give lambda for each row."""
        return np.full(len(neighbours.distances), self.lmbda)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How neighbours become probabilities: how many, how sharp, how trusted."""

    k: int
    temperature: float
    policy: LambdaPolicy

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(
                f"k must be at least 1, not {self.k}.",
                hint="1024 is a good first choice; for the plain model set lambda to 0.",
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(
                f"The temperature must be above 0, not {self.temperature}.",
                hint="Leave it out, and it is taken from the datastore.",
            )

    def lmbda(self, neighbours: Neighbours) -> Float64:
        """Lambda of each row, float64 `[q]`; 0 where a row found nothing."""
        found = np.isfinite(neighbours.distances).any(axis=1)
        return np.where(found, self.policy(neighbours), 0.0)


def neighbour_log_weights(distances: Float32, temperature: float) -> Float64:
    """Log of each neighbour's share of p_kNN, float64 `[q, k]`; padding and empty rows -inf."""
    s = -distances.astype(np.float64) / temperature
    log_z = _logsumexp(s)[:, None]
    return s - np.where(np.isneginf(log_z), 0.0, log_z)


def _logsumexp(values: Float64) -> Float64:
    """Log of the sum of exp over each row, `[q, k]` to `[q]`; -inf for a row of -inf."""
    top = values.max(axis=1, initial=-np.inf)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        total: Float64 = safe + np.log(np.exp(values - safe[:, None]).sum(axis=1))
    return total


def token_log_probs(distances: Float32, tokens: Int64, temperature: float) -> Float64:
    """Log p_kNN of every neighbour's token, float64 `[q, k]`; places of one token agree."""
    rows, k = tokens.shape
    if not rows * k:
        return np.empty((rows, k))
    weights = neighbour_log_weights(distances, temperature)
    order = np.argsort(tokens, axis=1, kind="stable")
    sorted_tokens = np.take_along_axis(tokens, order, axis=1)
    first = np.ones((rows, k), dtype=bool)
    first[:, 1:] = sorted_tokens[:, 1:] != sorted_tokens[:, :-1]
    sums = np.logaddexp.reduceat(
        np.take_along_axis(weights, order, axis=1).ravel(), np.flatnonzero(first)
    )
    groups = np.cumsum(first).reshape(rows, k) - 1
    result = np.empty((rows, k))
    np.put_along_axis(result, order, sums[groups], axis=1)
    return result


def target_log_probs(
    distances: Float32, tokens: Int64, targets: Int64, temperature: float
) -> Float64:
    """Log p_kNN of one token a row: targets int64 `[q]` to float64 `[q]`; -inf if no neighbour."""
    weights = neighbour_log_weights(distances, temperature)
    hits = np.where(tokens == targets[:, None], weights, -np.inf)
    return _logsumexp(hits)


def mix(log_knn: Float64, log_lm: Float64, lmbda: Float64) -> Float64:
    """Log of lambda * p_kNN + (1 - lambda) * p_LM, elementwise; lambda 0 gives log_lm itself."""
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log(lmbda) + log_knn, np.log1p(-lmbda) + log_lm)
    return np.where(lmbda == 0, log_lm, mixed)


def drop_impossible(neighbours: Neighbours, log_lm: Float64) -> Float32:
    """Distances with +inf where the model itself rules the neighbour's token out.

    log_lm: log p_LM of each neighbour's token, `[q, k]`, -inf where the token is suppressed (or
    beyond the vocabulary). A datastore cannot bring such a token back; p_kNN is then over the
    remaining neighbours.
    """
    ruled_out = np.isneginf(log_lm)
    if not ruled_out.any():
        return neighbours.distances
    return np.where(ruled_out, np.float32(np.inf), neighbours.distances)
