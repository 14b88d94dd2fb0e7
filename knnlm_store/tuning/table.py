"""A sample at one k, with what is needed again and again worked out once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from knnlm_store.features import features
from knnlm_store.gate import Gate
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, LambdaPolicy
from knnlm_store.policies import nearest
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Int64

_ROWS = 4096  # described at once


class Table:
    """n tokens at k neighbours.

    home: bool `[n]`, whether the token is of the text to fit; the others are of foreign text, which
    only says where the datastore must keep silent. counts: how often each counts in a fit, float64
    `[n]`.
    """

    def __init__(
        self, sample: Sample, k: int, home: NDArray[np.bool_], foreign_share: float
    ) -> None:
        self.sample = sample.nearest(k)
        self.k = k
        self.home = home
        self.nearest = nearest(self.sample.evidence.distances)
        self.found = self.sample.evidence.found > 0
        self._ends = _ends(self.sample.evidence)
        foreign = int((~self.home).sum())
        weight = foreign_share * self.home.sum() / max(foreign, 1)
        self.counts: Float64 = np.where(self.home, 1.0, weight)
        self._log_knn: dict[float, Float64] = {}
        self._features: dict[float, Float64] = {}

    def log_knn(self, temperature: float) -> Float64:
        """Log p_kNN of every token at a temperature, `[n]`."""
        if temperature not in self._log_knn:
            self._log_knn[temperature] = self.sample.log_knn(temperature)
        return self._log_knn[temperature]

    def features(self, temperature: float) -> Float64:
        """Describe every token for a gate, `[n, f]`."""
        if temperature not in self._features:
            parts = [
                features(self.sample.evidence[start : start + _ROWS], temperature)
                for start in range(0, len(self.sample), _ROWS)
            ]
            self._features[temperature] = np.concatenate(parts)
        return self._features[temperature]

    def log_p_under(self, policy: LambdaPolicy, temperature: float, rows: Int64) -> Float64:
        """Log p of some tokens under a policy, `[len(rows)]`."""
        if isinstance(policy, Gate):
            queries = self.sample.evidence.queries
            mine = None if queries is None else queries[rows]
            weights = policy.weigh(self.features(policy.temperature)[rows], mine)
        else:
            weights = policy(self._ends[rows])
        weights = np.where(self.found[rows, None], weights, 0.0)
        with np.errstate(divide="ignore"):
            total: Float64 = np.log1p(-np.minimum(weights.sum(axis=1), 1.0))
            total = total + self.sample.log_lm[rows]
            for column, scale in enumerate(policy.scales):
                log_knn = self.log_knn(temperature * scale)[rows]
                total = np.logaddexp(total, np.log(weights[:, column]) + log_knn)
        return total


def _ends(evidence: Evidence) -> Evidence:
    """Keep each row's nearest and farthest neighbour: simple policies look at nothing else."""
    rows, k = np.arange(len(evidence)), evidence.distances.shape[1]
    far = np.clip(evidence.found - 1, 0, None)
    place = np.stack([np.zeros_like(far), far], axis=1)[:, : min(k, 2)]
    return Evidence(
        np.take_along_axis(evidence.distances, place, axis=1),
        np.take_along_axis(evidence.tokens, place, axis=1),
        np.take_along_axis(evidence.log_lm, place, axis=1),
        evidence.entropy[rows],
        evidence.top[rows],
    )
