"""What to use for temperature, k and lambda before anybody fitted them.

No temperature is right everywhere (1 to 200 in the literature), so it is taken from the data: one
tenth of the median squared distance from an entry to its 10th neighbour in other documents.
"""

from __future__ import annotations

import contextlib
import json
import math
from itertools import islice
from typing import Any

import numpy as np

from knnlm_store.catalog import DocumentRecord
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StorageFull, StoreCorrupt, StoreNotWritable
from knnlm_store.interpolation import Fixed, Mixture
from knnlm_store.values import DocumentFilter, Float32

DEFAULT_K = 1024
DEFAULT_LMBDA = 0.25

_RECORD = "temperature"
_DOCUMENTS, _ENTRIES, _NEIGHBOUR = 32, 8, 10


def default_mixture(
    store: Datastore,
    *,
    k: int | None = None,
    temperature: float | None = None,
    lmbda: float | None = None,
) -> Mixture:
    """Fill in what the user did not say. Raises UsageError for what cannot be right."""
    policy = Fixed(DEFAULT_LMBDA if lmbda is None else lmbda)
    Mixture(k=DEFAULT_K if k is None else k, temperature=temperature or 1.0, policy=policy)
    if temperature is None:
        temperature = stored_temperature(store) or keep_temperature(store)
    return Mixture(k=DEFAULT_K if k is None else k, temperature=temperature, policy=policy)


def stored_temperature(store: Datastore) -> float | None:
    """Read the temperature that was taken from the data since the last ingest, if any."""
    value = store.backend.get_records([_RECORD]).get(_RECORD)
    if value is None:
        return None
    try:
        temperature = float(json.loads(value)["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(temperature)  # noqa: TRY301  one message for all that is wrong
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"The temperature kept in {store.location} cannot be read.",
            hint="Pass --temperature; an ingest that changes something has it taken anew.",
        ) from error
    return temperature


def keep_temperature(store: Datastore) -> float:
    """Take the temperature from the data, and keep it in the datastore if that can be written."""
    temperature = estimate_temperature(store)
    record: dict[str, Any] = {"temperature": temperature}
    with contextlib.suppress(StoreNotWritable, StorageFull):
        store.backend.put_records({_RECORD: json.dumps(record).encode()})
    return temperature


def forget_temperature(store: Datastore) -> None:
    """Have it taken anew at the next use, because the entries changed.

    Not now: a local backend would load all keys for it, and ingest's memory must not grow.
    """
    store.backend.delete_records([_RECORD])


def estimate_temperature(store: Datastore) -> float:
    """One tenth of the median squared distance to the 10th neighbour in another document.

    Samples 8 entries of each of 32 documents. 1.0 where there is nothing to measure.
    """
    documents = sorted(store.documents(), key=lambda document: document.id)
    step = max(1, len(documents) // _DOCUMENTS)
    sample = documents[::step][:_DOCUMENTS]
    distances = np.concatenate(
        [np.empty(0, np.float32), *(_distances(store, d, len(documents) > 1) for d in sample)]
    )
    usable = distances[np.isfinite(distances) & (distances > 0)]
    if not len(usable):
        return 1.0
    return float(f"{np.median(usable) / 10:.3g}")


def _distances(store: Datastore, document: DocumentRecord, leave_out: bool) -> Float32:
    """Squared distances of some of a document's entries to their 10th neighbour."""
    number = document.version.number
    batches = store.backend.scan(with_keys=True, documents=[number], batch_size=1024)
    for entries in islice(batches, 1):
        queries = entries.keys[:: max(1, len(entries) // _ENTRIES)][:_ENTRIES]
        within = DocumentFilter.leaving_out([number]) if leave_out else None
        # stored keys, not hidden states: past whatever transform the datastore has
        found = store.backend.search(queries, _NEIGHBOUR, within=within)
        # a small datastore has fewer than ten: its farthest neighbour must do
        last = np.isfinite(found.distances).sum(axis=1) - 1
        rows = np.flatnonzero(last >= 0)
        farthest: Float32 = found.distances[rows, last[rows]]
        return farthest
    return np.empty(0, np.float32)
