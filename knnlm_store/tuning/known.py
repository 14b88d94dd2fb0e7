"""Whether text that should be new to a datastore is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from knnlm_store.datastore import Datastore
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Int64

if TYPE_CHECKING:  # it runs models
    from knnlm_store.tuning.cache import Reading

NEAR = 0.25
"""Squared distance of a copy, in temperatures: an exact one, but for the rounding of int8 keys."""
COPIED = 0.05
"""Share of copies that new text does not reach (measured: 0.003 to 0.01)."""

_BEGINNING = 16  # tokens of a document: many documents begin alike


def contamination(
    store: Datastore, sample: Sample, reading: Reading, what: str, near: float
) -> list[str]:
    """Say how much of a text is in the datastore: as whole documents, and as copies in others.

    near: squared distance up to which a neighbour counts as a copy.
    """
    known = {document.version.digest for document in store.documents()}
    same = [name for name, digest in reading.digests.items() if digest in known]
    warnings = []
    if same:
        warnings.append(
            f"{len(same)} of {len(reading.digests)} {what} documents are in the datastore "
            f"({same[0]}); the figures flatter it."
        )
    is_same = np.array([name in set(same) for name in sample.names], dtype=bool)
    tokens, copies = _counted(sample, near)
    share = copies[~is_same].sum() / max(tokens[~is_same].sum(), 1)
    if share > COPIED:
        others = " other" if same else ""
        warnings.append(
            f"{100 * share:.0f}% of the{others} {what} tokens have an exact copy in the "
            "datastore; the figures flatter it."
        )
    return warnings


def without_known(sample: Sample, near: float) -> tuple[Sample | None, list[str]]:
    """Leave out the documents that are in the datastore; gives their names as well.

    None where that is all of them.
    """
    tokens, copies = _counted(sample, near)
    known = copies > COPIED * tokens
    names = [name for name, is_known in zip(sample.names, known, strict=True) if is_known]
    left = ~known[sample.documents]
    return sample[left] if left.any() else None, names


def _counted(sample: Sample, near: float) -> tuple[Int64, Int64]:
    """Count each document's tokens beyond its beginning, and those with a copy, int64 `[names]`."""
    deep = _places(sample) >= _BEGINNING
    close = deep & (sample.evidence.distances[:, 0] <= near)
    tokens, copies = (
        np.bincount(sample.documents[rows], minlength=len(sample.names)) for rows in (deep, close)
    )
    return tokens, copies


def _places(sample: Sample) -> Int64:
    """Place of each token in its document, int64 `[n]`."""
    _, first, owner = np.unique(sample.documents, return_index=True, return_inverse=True)
    places: Int64 = np.arange(len(sample)) - first[owner]
    return places
