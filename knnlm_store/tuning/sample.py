"""Scored tokens with their neighbours: all that fitting looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knnlm_store.interpolation import Float64, logsumexp, neighbour_log_weights
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.values import Float32, Int64

_ROWS = 4096  # that are worked on at once, so that float64 copies stay small


@dataclass(frozen=True, slots=True)
class Sample:
    """n tokens of text.

    log_lm: log p_LM of the tokens, float64 `[n]`. targets: the tokens, int64 `[n]`. documents:
    number of each token's document in `names`, int64 `[n]`. evidence: n rows of neighbours;
    tokens may be int32 and log_lm float32 there, to save memory.
    """

    log_lm: Float64
    targets: Int64
    documents: Int64
    evidence: Evidence
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.targets)

    def __getitem__(self, rows: Int64 | slice | NDArray[np.bool_]) -> Sample:
        """Select tokens."""
        return Sample(
            self.log_lm[rows],
            self.targets[rows],
            self.documents[rows],
            self.evidence[rows],
            self.names,
        )

    def nearest(self, k: int) -> Sample:
        """Keep the k nearest neighbours of each token."""
        return Sample(
            self.log_lm, self.targets, self.documents, self.evidence.nearest(k), self.names
        )

    def log_knn(self, temperature: float) -> Float64:
        """Log p_kNN of the tokens, float64 `[n]`; -inf where no neighbour has the token."""
        parts = [np.empty(0)]
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            weights = neighbour_log_weights(self.evidence.distances[rows], temperature)
            hit = self.evidence.tokens[rows] == self.targets[rows, None]
            parts.append(logsumexp(np.where(hit, weights, -np.inf)))
        return np.concatenate(parts)

    def log_p(self, mixture: Mixture) -> Float64:
        """Log p of the tokens under a mixture, float64 `[n]`."""
        near = self.nearest(mixture.k)
        weights = np.where(near.evidence.found[:, None] > 0, mixture.policy(near.evidence), 0.0)
        with np.errstate(divide="ignore"):
            log_weights = np.log(weights)
            total: Float64 = np.log1p(-np.minimum(weights.sum(axis=1), 1.0)) + self.log_lm
        for column, scale in enumerate(mixture.policy.scales):
            log_knn = near.log_knn(mixture.temperature * scale)
            total = np.logaddexp(total, log_weights[:, column] + log_knn)
        return total


def joined(samples: list[Sample]) -> Sample:
    """Put samples together; their documents stay apart."""
    names: tuple[str, ...] = ()
    documents = []
    for sample in samples:
        documents.append(sample.documents + len(names))
        names += sample.names
    evidence = [sample.evidence for sample in samples]
    return Sample(
        np.concatenate([sample.log_lm for sample in samples]),
        np.concatenate([sample.targets for sample in samples]),
        np.concatenate(documents),
        Evidence(
            np.concatenate([e.distances for e in evidence]),
            np.concatenate([e.tokens for e in evidence]),
            np.concatenate([e.log_lm for e in evidence]),
            np.concatenate([e.entropy for e in evidence]),
            np.concatenate([e.top for e in evidence]),
            _together([e.queries for e in evidence]),
        ),
        names,
    )


def _together(queries: list[Float32 | None]) -> Float32 | None:
    """Put queries together; None where some are not known."""
    known = [each for each in queries if each is not None]
    return np.concatenate(known) if len(known) == len(queries) else None
