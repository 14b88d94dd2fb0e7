"""Lambda that follows the evidence: by nearest distance, or by how near stands to far; and less."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from knnlm_store.errors import UsageError
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, Fixed, LambdaPolicy
from knnlm_store.values import Float32

RATIO_ALPHA, RATIO_TAU = 0.2, 0.1
"""What the ratio rule goes by until it is fitted; see benchmarks/README.md."""


@dataclass(frozen=True, slots=True)
class Bucketed:
    """Lambda by the squared distance of the nearest neighbour (Drozdov et al. 2022, section 4).

    edges: float64 `[b - 1]`, ascending; a row is in bucket i if i edges are at or below its
    nearest distance. lambdas: float64 `[b]`.
    """

    edges: Float64
    lambdas: Float64
    name: str = field(default="bucketed", init=False)
    scales: tuple[float, ...] = field(default=(1.0,), init=False)

    def __post_init__(self) -> None:
        if len(self.lambdas) != len(self.edges) + 1:
            raise UsageError(f"{len(self.edges)} edges part {len(self.edges) + 1} buckets.")
        if not ((self.lambdas >= 0) & (self.lambdas <= 1)).all():
            raise UsageError("Lambdas of buckets must lie in 0..1.")
        if not (np.diff(self.edges) > 0).all():
            raise UsageError("Edges of buckets must ascend.")

    def __call__(self, evidence: Evidence) -> Float64:
        """Look up each row's lambda, `[q, 1]`."""
        buckets = np.searchsorted(self.edges, nearest(evidence.distances), side="right")
        return self.lambdas[buckets][:, None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Lambda by the ratio of the nearest to the farthest distance (NEST, Li et al. 2024, eq. 5).

    lambda = 1 - sigmoid((d_1 / d_k - alpha) / tau): near one where the nearest stands out, near
    zero where all are as far. Needs no fitting; d are squared distances.
    """

    alpha: float = RATIO_ALPHA
    tau: float = RATIO_TAU
    name: str = field(default="ratio", init=False)
    scales: tuple[float, ...] = field(default=(1.0,), init=False)

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise UsageError(f"tau must be above 0, not {self.tau}.")

    def __call__(self, evidence: Evidence) -> Float64:
        """Give lambda of each row, `[q, 1]`."""
        x = (near_over_far(evidence) - self.alpha) / self.tau
        result: Float64 = (1 / (1 + np.exp(np.minimum(x, 700))))[:, None]
        return result


@dataclass(frozen=True, slots=True)
class Damped:
    """Another policy, trusting neighbours only a `share` as much.

    p is then that share of the policy's mixture, and for the rest the plain model's.
    """

    policy: LambdaPolicy
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"A policy is damped to a share in 0..1, not {self.share}.")

    @property
    def name(self) -> str:
        """That of the policy."""
        return self.policy.name

    @property
    def scales(self) -> tuple[float, ...]:
        """Those of the policy."""
        return self.policy.scales

    def __call__(self, evidence: Evidence) -> Float64:
        """Give the policy's weights, less, `[q, len(scales)]`."""
        return self.share * self.policy(evidence)


def damped(policy: LambdaPolicy, share: float) -> LambdaPolicy:
    """Have a policy trust neighbours a share as much; one of constants stays one of its kind."""
    match policy:
        case _ if share == 1:
            return policy
        case Fixed(lmbda=lmbda):
            return Fixed(share * lmbda)
        case Bucketed(edges=edges, lambdas=lambdas):
            return Bucketed(edges, share * lambdas)
    return Damped(policy, share)


def nearest(distances: Float32) -> Float64:
    """Squared distance of each row's nearest neighbour, float64 `[q]`; inf where there is none."""
    if not distances.shape[1]:
        return np.full(len(distances), np.inf)
    return distances[:, 0].astype(np.float64)


def near_over_far(evidence: Evidence) -> Float64:
    """Nearest over farthest squared distance, `[q]`, in 0..1.

    0 where all lie at distance 0, exact duplicates by the hundred; 1 where nothing was found.
    """
    rows = np.arange(len(evidence))
    last = evidence.found - 1
    near = nearest(evidence.distances)
    if not evidence.distances.shape[1]:
        return np.ones(len(rows))
    far = evidence.distances[rows, np.maximum(last, 0)].astype(np.float64)
    ratio: Float64 = np.divide(
        near, far, out=np.zeros(len(rows)), where=(far > 0) & np.isfinite(far)
    )
    return np.where(last < 0, 1.0, ratio)
