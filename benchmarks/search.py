"""The FAISS adapter against exact search, over 100 thousand real keys and held-out queries.

Run: python -m benchmarks.search
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import documents, language_model, report, store_of, timed
from knnlm_store import exact
from knnlm_store.datastore import Datastore
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.values import Entries, Float32
from knnlm_store.windows import batches, windows

KS, QUERIES, SINGLES = (32, 128, 1024), 256, 40


def held_out_queries(model: LanguageModel) -> Float32:
    """Keys of text that is not in the store: the last topics, behind the store's 100 thousand."""
    text = documents(2000, model, skip=-3)
    stream = (
        window
        for t in text
        for window in windows(None, model.document_start, model.encode(t.text), model.window)
    )
    keys = []
    for batch in batches(stream, model.window):
        hidden = model.keys(batch)
        keys += [
            to_numpy(row[: len(w.inputs)]) for row, w in zip(hidden, batch.windows, strict=True)
        ]
    return np.concatenate(keys)[:QUERIES]


def compare(store: Datastore, queries: Float32) -> dict[str, Any]:
    """Recall of distances and milliseconds a query, at batch 1 and in one batch."""
    entries = Entries.concatenate(list(store.backend.scan(with_keys=True)))
    norms = exact.squared_norms(entries.keys)
    figures: dict[str, Any] = {}
    for k in KS:
        distances, _ = exact.nearest(queries, [(0, entries.keys, norms)], k)
        farthest = distances.max(axis=1, keepdims=True) * (1 + 1e-4)
        found = store.search(queries, k).distances
        recall = float((found <= farthest).sum(axis=1).clip(max=k).mean() / k)
        single = sum(timed(store.search, q[None], k) for q in queries[:SINGLES])
        whole = timed(store.search, queries, k)
        blocks = [(0, entries.keys, norms)]
        bare = sum(timed(exact.nearest, q[None], blocks, k) for q in queries[:SINGLES])
        figures[f"k{k}"] = {
            "recall": recall,
            "ms_batch_1": 1000 * single / SINGLES,
            f"ms_batch_{len(queries)}": 1000 * whole / len(queries),
            "exact_ms_batch_1": 1000 * bare / SINGLES,
        }
    return figures


def main() -> None:
    """Print recall, latency and bytes an entry for both storages."""
    model = language_model()
    queries = held_out_queries(model)
    figures = {}
    for storage in ("float16", "int8"):
        store = store_of(100_000, model, storage)
        entries, size = store.backend.count(), store.backend.size()
        figures[storage] = {
            "index": store.info()["index"],
            "entries": entries,
            "bytes_per_entry": (size or 0) / entries,
            **compare(store, queries),
        }
    report("search", figures)


if __name__ == "__main__":
    main()
