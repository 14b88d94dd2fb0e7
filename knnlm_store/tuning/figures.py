"""What a mixture does to tokens, for tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from knnlm_store.backend import VectorBackend
from knnlm_store.interpolation import Float64
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Int64

LENGTHS = (16, 8, 4)
FREQUENCIES = (0, 10, 100, 1000, 10_000)
LARGEST = 50_000_000
"""Entries of a datastore whose contents are looked at: tokens and ids of all are held in memory."""

_NOTICED = 0.01  # nats: less is neither help nor hurt


def summary(log_p: Float64, log_lm: Float64) -> dict[str, float]:
    """Perplexity, and the shares of tokens made likelier and unlikelier by over 1 %."""
    gain = log_p - log_lm
    return {
        "perplexity": float(np.exp(min(-log_p.mean(), 700.0))),
        "helped": float((gain > _NOTICED).mean()),
        "hurt": float((gain < -_NOTICED).mean()),
    }


def by_group(log_p: Float64, log_lm: Float64, groups: Mapping[str, Any]) -> dict[str, Any]:
    """Give for each named mask, bool `[n]`: tokens and the mean gain in nats a token."""
    gain = log_p - log_lm
    return {
        name: {
            "tokens": int(mask.sum()),
            "gain": float(gain[mask].mean()) if mask.any() else 0.0,
        }
        for name, mask in groups.items()
    }


def gains(backend: VectorBackend, sample: Sample, log_p: Float64) -> dict[str, dict[str, Any]]:
    """Gains by how often a token stands in a datastore, and by overlap; none beyond LARGEST.

    log_p: of the sample's tokens, `[n]`.
    """
    if backend.count() > LARGEST:
        return {}
    contents = Contents(backend)
    groups = {
        "frequency": contents.frequencies(sample),
        "overlap": contents.overlaps(sample),
    }
    return {name: by_group(log_p, sample.log_lm, each) for name, each in groups.items()}


class Contents:
    """Tokens of a datastore: how often each stands there, and which n-grams.

    Holds all of them; see LARGEST.
    """

    def __init__(self, backend: VectorBackend) -> None:
        ids, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for batch in backend.scan():
            ids.append(batch.ids)
            tokens.append(batch.tokens)
        order = np.argsort(np.concatenate(ids))
        self._ids, self._tokens = np.concatenate(ids)[order], np.concatenate(tokens)[order]
        self.frequency = np.bincount(self._tokens) if len(self._tokens) else np.zeros(1, np.int64)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._tokens)

    def frequencies(self, sample: Sample) -> dict[str, Any]:
        """Group tokens by how often they stand in the datastore: name to mask, bool `[n]`."""
        known = np.minimum(sample.targets, len(self.frequency) - 1)
        counts = np.where(known == sample.targets, self.frequency[known], 0)
        bounds = [*FREQUENCIES, np.iinfo(np.int64).max]
        groups = {"never": counts == 0}
        for low, high in pairwise(bounds):
            name = f"{max(low, 1):,} to {high - 1:,}" if high < bounds[-1] else f"{low:,} and more"
            groups[name] = (counts >= max(low, 1)) & (counts < high)
        return groups

    def overlaps(self, sample: Sample) -> dict[str, Any]:
        """Group tokens by the longest n-gram they end that stands in the datastore as well."""
        rest = np.ones(len(sample), dtype=bool)
        groups: dict[str, Any] = {}
        for n in LENGTHS:
            there = np.unique(_hashes(self._tokens, np.diff(self._ids) == 1, n)[n - 1 :])
            asked = _hashes(sample.targets, np.diff(sample.documents) == 0, n)
            found = np.isin(asked, there) & (asked != 0) & rest
            groups[f"ends {n} tokens found there"] = found
            rest &= ~found
        groups["none"] = rest
        return groups


def _hashes(tokens: Int64, joined: np.ndarray[Any, np.dtype[np.bool_]], n: int) -> Int64:
    """Hash the n tokens that end at each place, int64 `[m]`; 0 where a document began since."""
    m = len(tokens)
    value = np.zeros(m, np.uint64)
    whole = np.ones(m, dtype=bool)
    for back in range(min(n, m)):
        shifted = np.zeros(m, np.uint64)
        shifted[back:] = tokens[: m - back].astype(np.uint64) + np.uint64(1)
        value = value * np.uint64(0x9E3779B97F4A7C15) + shifted * np.uint64(0xD6E8FEB86659FD93)
        if back:
            whole[back:] &= joined[: m - back]
    whole[: n - 1] = False
    return np.where(whole, value | np.uint64(1), 0).astype(np.uint64).view(np.int64)
