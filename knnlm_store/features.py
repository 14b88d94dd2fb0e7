"""What a learned gate sees of a row: how near, how agreed, how much of the model's own mind."""

from __future__ import annotations

import numpy as np

from knnlm_store.interpolation import Float64, neighbour_log_weights, token_log_probs
from knnlm_store.mixture import Evidence
from knnlm_store.policies import near_over_far, nearest

NAMES = (
    "log of the nearest distance",
    "log of the 10th distance",
    "log of the farthest distance",
    "nearest over farthest distance",
    "entropy of p_kNN",
    "largest p_kNN",
    "log p_LM of the token of the largest p_kNN",
    "p_LM of all neighbours' tokens",
    "log p_LM expected under p_kNN",
    "p_kNN of the model's first choice",
    "share of the 8 nearest that agree with the nearest",
    "log of the number of different tokens",
    "entropy of p_LM",
    "log of the largest p_LM",
)
_NEAR, _TENTH = 8, 10
_LEAST = -30.0  # nats: a probability below e^-30 is none
_SAME = 1e-3  # nats between two readings of one probability


def features(evidence: Evidence, temperature: float) -> Float64:
    """Describe rows, float64 `[q, len(NAMES)]`: finite, with distances in units of T.

    Rows without a neighbour are described by zeros.
    """
    q, k = evidence.distances.shape
    if not q * k:
        return np.zeros((q, len(NAMES)))
    rows, count = np.arange(q), evidence.found
    there = np.isfinite(evidence.distances)
    log_weights = neighbour_log_weights(evidence.distances, temperature)
    weights = np.exp(log_weights)
    log_knn = np.where(there, token_log_probs(log_weights, evidence.tokens), _LEAST)
    log_lm = np.maximum(evidence.log_lm, _LEAST)
    best = np.where(there, log_knn, -np.inf).argmax(axis=1)
    repeats = _repeats(evidence)
    first_choice = there & (evidence.log_lm >= evidence.top[:, None] - _SAME)
    agree = (evidence.tokens[:, :_NEAR] == evidence.tokens[:, :1]) & there[:, :_NEAR]

    def log_distance(place: int) -> Float64:
        last = np.clip(np.minimum(place, count - 1), 0, None)
        distance = evidence.distances[rows, last].astype(np.float64)
        return np.log(np.where(count > 0, distance, 0) / temperature + 0.1)

    table = np.stack(
        [
            np.log(np.where(count > 0, nearest(evidence.distances), 0) / temperature + 0.1),
            log_distance(_TENTH - 1),
            log_distance(k - 1),
            near_over_far(evidence),
            -(weights * np.maximum(log_knn, _LEAST)).sum(axis=1),
            np.exp(log_knn[rows, best]),
            log_lm[rows, best],
            np.where(there & ~repeats, np.exp(log_lm), 0).sum(axis=1),
            (weights * log_lm).sum(axis=1),
            np.where(first_choice, weights, 0).sum(axis=1),
            agree.mean(axis=1),
            np.log(np.maximum((there & ~repeats).sum(axis=1), 1)),
            evidence.entropy,
            evidence.top,
        ],
        axis=1,
    )
    return np.where(count[:, None] > 0, table, 0.0)


def _repeats(evidence: Evidence) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Mark the places whose token stands before in the row, bool `[q, k]`."""
    order = np.argsort(evidence.tokens, axis=1, kind="stable")
    ordered = np.take_along_axis(evidence.tokens, order, axis=1)
    again = np.zeros(ordered.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeats = np.empty_like(again)
    np.put_along_axis(repeats, order, again, axis=1)
    return repeats
