"""Datastores of a tiny model, filled with text or at random, for tests of several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.manifest import Manifest
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.values import Entries, Int64, Neighbours
from knnlm_store.windows import batches, windows
from tests.reference import dense_mixture
from tests.tiny import VOCABULARY

TEXTS = [
    "the creditor shall disclose the rate; the creditor shall disclose the fee.",
    "the creditor shall discover a thing; a consumer may cancel, and ask again.",
    "shall we discuss the rating? the creditor shares the disco, the creditor shouts.",
]
HELD_OUT = "the creditor shall disclose a thing; a consumer shall discuss the fee, may cancel."


def in_use(lm: KnnLM) -> Datastore:
    """The one datastore that is mixed in."""
    assert lm._used.now is not None
    store = lm._used.now.memories[0][0].guard.store
    assert isinstance(store, Datastore)
    return store


def filled(lm: LanguageModel, *texts: str, uri: str = "memory:") -> Datastore:
    """A datastore with a document for each text."""
    store = Datastore.open_or_create(uri, lm.manifest())
    ingest([Document("t", str(i), text, {}, 0) for i, text in enumerate(texts)], lm, store)
    return store


def random_store(manifest: Manifest, n: int, seed: int, uri: str = "memory:") -> Datastore:
    """A datastore of n random entries, some of them with keys that others have as well."""
    store = Datastore.open_or_create(uri, manifest)
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((n, manifest.key_dimension)).astype(np.float32)
    keys = keys.astype(np.float16).astype(np.float32)  # whatever a backend keeps them as
    keys[n // 2 :: 3] = keys[: len(keys[n // 2 :: 3])]
    documents: Int64 = np.full(n, 1000 * (seed + 1), dtype=np.int64)
    store.backend.upsert(Entries(keys, rng.integers(0, VOCABULARY, n), documents, np.arange(n)))
    store.backend.flush()
    return store


def entries_of(*stores: Datastore) -> Entries:
    return Entries.concatenate([e for s in stores for e in s.backend.scan(with_keys=True)])


def fields(found: Neighbours) -> list[NDArray[Any]]:
    return [found.distances, found.tokens, found.documents, found.positions]


def blended(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    parts: Sequence[tuple[Datastore, Mixture, float]],
    weights: Sequence[float],
) -> NDArray[np.float64]:
    """p over the vocabulary by the definition of a blend, float64: logits `[v]`, hidden `[d]`.

    parts: datastore, mixture, and the lambda that its policy gives.
    """
    p: NDArray[np.float64] = (1 - sum(weights)) * np.exp(
        log_p(logits, hidden, entries_of(parts[0][0])[:0], None, 0.0)
    )
    for (store, mixture, lmbda), weight in zip(parts, weights, strict=True):
        p += weight * np.exp(log_p(logits, hidden, entries_of(store), mixture, lmbda))
    return p


def log_p(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    entries: Entries,
    mixture: Mixture | None,
    lmbda: float,
) -> NDArray[np.float64]:
    k, temperature = (mixture.k, mixture.temperature) if mixture else (1, 1.0)
    return dense_mixture(logits.numpy(), hidden.numpy(), entries, k, temperature, lmbda)


def scored_of(lm: LanguageModel, text: str) -> Scored:
    """What the plain model makes of a text, in one window."""
    (batch,) = batches(windows(None, lm.document_start, lm.encode(text), 256), 256)
    return score_batch(lm, batch)
