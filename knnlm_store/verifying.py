"""Whether a copy holds what the original does: counted, and sampled in full."""

from __future__ import annotations

import numpy as np

from knnlm_store import recall
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord
from knnlm_store.errors import StoreCorrupt
from knnlm_store.values import Entries
from knnlm_store.wording import counted

DOCUMENTS, ENTRIES = 32, 8
"""Documents that are sampled, drawn by their length, and entries drawn from each."""
ROUNDING = {"float32": 1e-6, "float16": 1e-3, "int8": 1e-2}
"""Largest error of a value that a storage may bring, in parts of the key's largest value."""


def verify(
    source: Datastore, target: Datastore, documents: list[DocumentRecord], seed: int = 0
) -> dict[str, int]:
    """Compare counts, and a sample of entries in full; gives how many of each were compared.

    Raises StoreCorrupt naming what differs.
    """
    expected = sum(document.version.tokens for document in documents)
    found = target.backend.count([document.version.number for document in documents])
    if found != expected:
        raise StoreCorrupt(
            f"{target.location} holds {found:,} of {counted(expected, 'entry')}.",
            hint="Run the same command again.",
        )
    chosen = _drawn(documents, seed)
    return {"entries": found, "sample": sum(_compare(source, target, d, seed) for d in chosen)}


def _drawn(documents: list[DocumentRecord], seed: int) -> list[DocumentRecord]:
    """Draw documents, the longer the likelier."""
    long = [document for document in documents if document.version.tokens]
    if len(long) <= DOCUMENTS:
        return long
    weights = np.array([document.version.tokens for document in long], np.float64)
    random = np.random.default_rng(seed)
    drawn = random.choice(len(long), DOCUMENTS, replace=False, p=weights / weights.sum())
    return [long[i] for i in drawn]


def _compare(source: Datastore, target: Datastore, document: DocumentRecord, seed: int) -> int:
    """Compare some entries of a document; gives how many."""
    entries = source.backend.scan(documents=[document.version.number])
    chosen = recall.choose(entries, ENTRIES, seed)
    if chosen is None:
        return 0
    ours, theirs = (_by_id(recall.with_keys(s.backend, chosen)) for s in (source, target))
    storages = [store.backend.spec().storage for store in (source, target)]
    if not _same(ours, theirs, max(ROUNDING.get(storage, 1e-2) for storage in storages)):
        raise StoreCorrupt(
            f"Entries of {document.id} differ between {source.location} and {target.location}.",
            hint=f"Remove the copy and copy again: knnlm-store rm {target.location}",
        )
    return len(ours)


def _by_id(entries: Entries) -> Entries:
    return entries[np.argsort(entries.ids)]


def _same(ours: Entries, theirs: Entries, tolerance: float) -> bool:
    for name in ("ids", "documents", "tokens"):
        if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
            return False
    largest = np.abs(ours.keys).max(axis=1, keepdims=True)
    return bool((np.abs(theirs.keys - ours.keys) <= tolerance * largest + 1e-12).all())
