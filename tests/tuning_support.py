"""Samples made in code, datastores to be tuned, and slow plain references, for tests of tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from knnlm_store.calibrated import Calibration
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.features import NAMES
from knnlm_store.gate import Gate, Likeness
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.mixture import Evidence, Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Bucketed, Ratio
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table
from knnlm_store.values import Location, Neighbours
from tests.ingest_support import corpus, new_store, prose, some_entries, store_of

KNOWN = {f"known{i}": prose(i, 100) for i in range(20)}
VALID = {f"valid{i}": prose(100 + i, 110) for i in range(10)}
TEST = {f"test{i}": prose(200 + i, 110) for i in range(5)}
STRANGE = {f"strange{i}": "0123456789" * 10 for i in range(20)}
"""Text that shares no token with the others."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Two threads that find one free core wait for each other a hundred times longer than work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(of: dict[str, str]) -> list[Document]:
    return corpus(of)


def filled(lm: LanguageModel, of: dict[str, str], uri: str = "memory:") -> Datastore:
    store = new_store(lm, uri)
    ingest(corpus(of), lm, store)
    return store


@contextmanager
def little_foreign(tokens: int = 400) -> Iterator[None]:
    """Look at less foreign text, which is long for a tokenizer of bytes, and try less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("knnlm_store.tuning.tune.MOST_FOREIGN", tokens)
        for name, values in {"BUCKETS": (8,), "ALPHAS": (0.1, 0.3), "TAUS": (0.1, 0.3)}.items():
            patch.setattr(f"knnlm_store.tuning.choice.{name}", values)
        yield


def neighbours(distances: Any, tokens: Any) -> Neighbours:
    """What a search found, `[q, k]`, from nested lists."""
    found = np.array(tokens, np.int64).reshape(np.shape(distances))
    return Neighbours(np.array(distances, np.float32), found, np.zeros_like(found), found * 0)


def evidence(
    distances: Any, tokens: Any = None, log_lm: float = -2.0, entropy: float = 1.0, top: float = -1
) -> Evidence:
    """Rows with these distances, `[q, k]`; tokens differ unless given."""
    shape = np.shape(distances)
    if tokens is None:
        tokens = np.where(np.isfinite(distances), np.arange(shape[1]), -1)
    found = neighbours(distances, tokens)
    there = np.where(np.isfinite(found.distances), log_lm, -np.inf)
    return Evidence.of(found, there, np.full(shape[0], entropy), np.full(shape[0], float(top)))


def made(
    rng: np.random.Generator,
    n: int,
    *,
    near: float,
    right: float,
    entropy: float = 2.0,
    log_lm: float = -3.0,
    k: int = 8,
    documents: int = 10,
    agreed: bool = False,
) -> Sample:
    """Tokens whose neighbours lie `near` to twice as far, and are all right or all wrong.

    right: the share of tokens whose neighbours are right. agreed: also the wrong ones agree.
    """
    targets = rng.integers(0, 50, n)
    is_right = rng.random(n) < right
    wrong = (targets[:, None] + rng.integers(1, 50, (n, 1 if agreed else k))) % 50
    tokens = np.where(is_right[:, None], targets[:, None], np.broadcast_to(wrong, (n, k)))
    distances = np.sort(near * (1 + rng.random((n, k))), axis=1).astype(np.float32)
    there = np.full((n, k), log_lm)
    views = entropy + 0.1 * rng.random(n), np.full(n, log_lm)
    names = tuple(f"d{i}" for i in range(documents))
    owners = np.sort(np.arange(n) % documents)
    return Sample(
        np.full(n, log_lm), targets, owners, Evidence(distances, tokens, there, *views), names
    )


def near_and_far(rng: np.random.Generator) -> Sample:
    """Near neighbours are mostly right and far ones wrong; some tokens have none."""
    parts = [made(rng, 300, near=0.5, right=0.9), made(rng, 300, near=6.0, right=0.05)]
    sample = joined(parts)
    nothing = rng.random(len(sample)) < 0.05
    distances = np.where(nothing[:, None], np.float32(np.inf), sample.evidence.distances)
    return replace(sample, evidence=replace(sample.evidence, distances=distances))


def table_of(sample: Sample, foreign: int = 0) -> Table:
    """A table whose last `foreign` tokens are of foreign text."""
    is_home = np.arange(len(sample)) < len(sample) - foreign
    return Table(sample, sample.evidence.distances.shape[1], is_home, 1.0)


def dense(
    logits: NDArray[Any], found: Neighbours, mixture: Mixture, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """p over the vocabulary, `[q, v]`, of weights `[q, scales]`, one loop after the other."""
    result = np.exp(logits.astype(np.float64))
    result /= result.sum(axis=1, keepdims=True)
    for row, p_lm in enumerate(result.copy()):
        usable = [
            (float(d), int(t))
            for d, t in zip(found.distances[row], found.tokens[row], strict=True)
            if np.isfinite(d) and 0 <= t < len(p_lm) and p_lm[t] > 0
        ]
        if not usable:
            continue
        result[row] *= 1 - weights[row].sum()
        for weight, scale in zip(weights[row], mixture.policy.scales, strict=True):
            least = min(d for d, _ in usable)
            shares = [np.exp(-(d - least) / (mixture.temperature * scale)) for d, _ in usable]
            for share, (_, token) in zip(shares, usable, strict=True):
                result[row, token] += weight * share / sum(shares)
    return result


def random_gate(
    rng: np.random.Generator,
    widths: tuple[int, ...] = (len(NAMES), 6, 3),
    dimension: int | None = None,
) -> Gate:
    """A gate of random weights; dimension: that of the queries that it looks at as well."""
    read, likeness = len(NAMES), None
    if dimension is not None:
        read, widths = read + 1, (widths[0] + 1, *widths[1:])
        likeness = Likeness(rng.normal(size=dimension), float(rng.normal()))
    layers = tuple((rng.normal(size=pair), rng.normal(size=pair[1])) for pair in pairwise(widths))
    spread = rng.random(read) + 0.1
    return Gate(3.0, rng.normal(size=read), spread, layers, (1.0, 2.5), likeness)


MIXTURES: Mapping[str, Mixture] = {
    "fixed": Mixture(64, 0.1 + 0.2, Fixed(1 / 3)),
    "bucketed": Mixture(
        64, np.pi, Bucketed(np.array([1e-300, 1 / 7, 2.0**70]), np.array([0.0, 0.1, 1 / 9, 1.0]))
    ),
    "ratio": Mixture(64, 1e-7, Ratio(0.3, 0.15)),
    "learned": Mixture(64, 1e9 / 3, random_gate(np.random.default_rng(7))),
}


def of_entries(lm: LanguageModel) -> Datastore:
    """A datastore of 300 entries, of no document."""
    made = store_of(MemoryBackend(Location("memory", "", "memory")), lm)
    made.backend.upsert(some_entries(10**5, 300, dimension=32))
    return made


def calibration(store: Datastore, chosen: str = "bucketed") -> Calibration:
    figures = {"policies": {"plain": {"valid": {"perplexity": 1 / 3}}}}
    return Calibration.of(store, MIXTURES, chosen, "2025-01-01T00:00:00+00:00", figures)
