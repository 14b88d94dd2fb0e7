"""(torch) What an ingest would cost: tokens counted, bytes and seconds estimated."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from knnlm_store import registry
from knnlm_store.catalog import Catalog
from knnlm_store.comparing import digest_of
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.models import LanguageModel
from knnlm_store.transform import DIMENSION, NONE
from knnlm_store.values import Location, Spec
from knnlm_store.windows import Batch, Window, batches, windows


@dataclass
class Estimate:
    """Documents and tokens an ingest would write; bytes and seconds are estimates."""

    storage: str
    documents: int = 0
    unchanged: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Give the estimate as one JSON-able object."""
        return asdict(self)


def estimate(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    where: Location,
    storage: str | None = None,
    *,
    transform: str | None = None,
    transform_from: str | None = None,
    batch_tokens: int | None = None,
) -> Estimate:
    """Tokenise what is new or changed, and time one forward pass of it. Writes nothing.

    transform, transform_from: how a new datastore's keys would be made. Raises StoreNotFound for a
    datastore to take them from that is not there, StoreMismatch for one of another model.
    """
    backend = registry.connect(where)
    known = Catalog(backend) if backend.exists() else None
    dimension = _dimension(model, transform, transform_from)
    result = Estimate(storage or (backend.spec().storage if known else backend.storages[0]))
    inputs = 0
    sample: list[Window[None]] = []
    for item in corpus:
        if isinstance(item, Problem):
            result.problems.append(item)
            continue
        old = known.get(item.id) if known else None
        if old and old.version.digest == digest_of(item):
            result.unchanged += 1
            continue
        tokens = model.encode(item.text)
        if not len(tokens) and not old:
            continue
        result.documents += 1
        result.tokens += len(tokens)
        for window in windows(None, model.document_start, tokens, model.window):
            inputs += len(window.inputs)
            if sum(len(w.inputs) for w in sample) < (batch_tokens or model.window):
                sample.append(window)
    spec = backend.spec() if known else Spec(dimension, result.storage)
    result.bytes = result.tokens * backend.bytes_per_entry(spec)
    if sample:
        batch = next(batches(sample, batch_tokens or model.window))
        result.seconds = inputs * _seconds_an_input(model, batch)
    return result


def _dimension(model: LanguageModel, transform: str | None, transform_from: str | None) -> int:
    """Dimension of a new datastore's keys."""
    manifest = model.manifest()
    if transform_from is not None:
        with Datastore.open(transform_from) as other:
            other.require(manifest)
            return other.manifest.key_dimension
    return manifest.dimension if transform == NONE else min(manifest.dimension, DIMENSION)


def _seconds_an_input(model: LanguageModel, batch: Batch[None]) -> float:
    model.keys(batch)  # the first pass also pays for allocations
    started = time.monotonic()
    model.keys(batch)
    return (time.monotonic() - started) / int(batch.attention_mask.sum())
