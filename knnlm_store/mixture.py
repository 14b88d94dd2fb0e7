"""What decides how far each row trusts its neighbours, and the mixture that follows from it.

A policy sees the evidence of a row, what was found and what the model makes of it, and gives the
weights of one or more neighbour distributions, each at its own temperature; what is left of 1 is
the model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from knnlm_store.errors import UsageError
from knnlm_store.interpolation import Float64, neighbour_log_weights
from knnlm_store.values import Float32, Int64, Neighbours


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a policy may look at, for q rows of k neighbours, nearest first.

    distances: squared L2, float32 `[q, k]`, +inf in places without a neighbour, which come last.
    tokens: int64 `[q, k]`, -1 there. log_lm: log p_LM of each neighbour's token, float64 `[q, k]`,
    -inf there. entropy: of p_LM in nats, top: log of its largest probability, both float64 `[q]`.
    queries: what was searched for, in the datastore's key space, float32 `[q, d]`; None where
    neighbours come from no search of a datastore.
    """

    distances: Float32
    tokens: Int64
    log_lm: Float64
    entropy: Float64
    top: Float64
    queries: Float32 | None = None

    @classmethod
    def of(cls, found: Neighbours, log_lm: Float64, entropy: Float64, top: Float64) -> Evidence:
        """Put neighbours and the model's view together.

        A neighbour whose token the model rules out (-inf: suppressed, or beyond the vocabulary)
        counts as not found: a datastore cannot bring such a token back.
        """
        order = usable_first(found, log_lm)
        if order is None:
            return cls(found.distances, found.tokens, log_lm, entropy, top, found.queries)
        distances = np.where(np.isneginf(log_lm), np.float32(np.inf), found.distances)
        return cls(
            np.take_along_axis(distances, order, axis=1),
            np.take_along_axis(found.tokens, order, axis=1),
            np.take_along_axis(log_lm, order, axis=1),
            entropy,
            top,
            found.queries,
        )

    @property
    def found(self) -> Int64:
        """Count each row's neighbours, int64 `[q]`."""
        found: Int64 = np.isfinite(self.distances).sum(axis=1)
        return found

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.distances)

    def __getitem__(self, rows: slice | Int64 | NDArray[np.bool_]) -> Evidence:
        """Select rows."""
        return Evidence(
            self.distances[rows],
            self.tokens[rows],
            self.log_lm[rows],
            self.entropy[rows],
            self.top[rows],
            None if self.queries is None else self.queries[rows],
        )

    def nearest(self, k: int) -> Evidence:
        """Keep the k nearest of each row."""
        return replace(
            self,
            distances=self.distances[:, :k],
            tokens=self.tokens[:, :k],
            log_lm=self.log_lm[:, :k],
        )


def usable_first(found: Neighbours, log_lm: Float64) -> Int64 | None:
    """Columns of each row, int64 `[q, k]`, in the order that Evidence has them; None: as they are.

    Neighbours whose token the model rules out come last. log_lm: as Evidence.of takes it.
    """
    ruled_out = np.isneginf(log_lm)
    if not (ruled_out & np.isfinite(found.distances)).any():
        return None
    distances = np.where(ruled_out, np.float32(np.inf), found.distances)
    return np.argsort(distances, axis=1, kind="stable")


class LambdaPolicy(Protocol):
    """Decides how much each row trusts its neighbours. Anything with these three will do."""

    @property
    def name(self) -> str:
        """Short name for reports."""
        ...

    @property
    def scales(self) -> tuple[float, ...]:
        """Multiples of the mixture's temperature, one a neighbour distribution; often (1.0,)."""
        ...

    def __call__(self, evidence: Evidence) -> Float64:
        """Give each distribution's weight in each row, float64 `[q, len(scales)]`.

        Weights are not negative, and those of a row sum to lambda, at most 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same lambda for every row (Khandelwal et al. 2020)."""

    lmbda: float
    name: str = field(default="fixed", init=False)
    scales: tuple[float, ...] = field(default=(1.0,), init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.lmbda <= 1:
            raise UsageError(
                f"lambda must lie in 0..1, not {self.lmbda}.",
                hint="0 is the plain model; 0.25 is a good first choice.",
            )

    def __call__(self, evidence: Evidence) -> Float64:
        """Give lambda for each row."""
        return np.full((len(evidence), 1), self.lmbda)


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

    @property
    def is_plain(self) -> bool:
        """Whether no row ever trusts its neighbours."""
        return isinstance(self.policy, Fixed) and self.policy.lmbda == 0

    def weigh(self, evidence: Evidence) -> tuple[Float64, Float64]:
        """Give each row's lambda, `[q]`, and the log of each neighbour's share of p_kNN, `[q, k]`.

        Lambda is 0 where a row found nothing. Shares of a row sum to 1 over its neighbours.
        """
        weights = self.policy(evidence)
        lmbda = np.where(evidence.found > 0, np.minimum(weights.sum(axis=1), 1.0), 0.0)
        temperatures = [self.temperature * scale for scale in self.policy.scales]
        if len(temperatures) == 1:
            return lmbda, neighbour_log_weights(evidence.distances, temperatures[0])
        shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        with np.errstate(divide="ignore"):
            log_shares = np.log(shares)
        total = np.full(evidence.distances.shape, -np.inf)
        for column, temperature in enumerate(temperatures):
            each = neighbour_log_weights(evidence.distances, temperature)
            total = np.logaddexp(total, log_shares[:, column, None] + each)
        return lmbda, total
