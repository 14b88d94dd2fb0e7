"""The checks of `knnlm-store doctor`: each looks at one thing and says how it is.

They judge what they are given; doctor.py decides which are run, and on what.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from knnlm_store import intents
from knnlm_store.backend import VectorBackend
from knnlm_store.datastore import Datastore
from knnlm_store.documents import scan_all
from knnlm_store.errors import KnnlmError
from knnlm_store.fallback import TIMEOUT
from knnlm_store.manifest import Manifest
from knnlm_store.values import Entries, Float32, Freshness, Neighbours
from knnlm_store.wording import counted

Status = Literal["ok", "warning", "failed", "not run"]

SLOW_MS = 100.0
"""A step of a small model takes some 10 to 100 ms: a slower search would be most of it."""
_WARM_UPS, _TIMED = 3, 50
_UNIT_ERROR = 0.05  # of nine distances in ten; the root of a distance is off by more
_TOO_NEAR = 1e-4  # of the squared lengths: below, rounding hides the unit
_EQUAL = 1e-9  # of the squared length: a key as near as this is the same key
_ANEW = "Searches miss what is there; knnlm-store compact STORE builds the index anew."


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found. value: its measure, JSON-able, None if there is none."""

    name: str
    status: Status
    message: str
    hint: str = ""
    value: Any = None

    @classmethod
    def failed_with(cls, name: str, error: KnnlmError) -> Check:
        """Say that the check itself ended in an error."""
        return cls(name, "failed", str(error), error.hint)

    def json(self) -> dict[str, Any]:
        """Give the check as a JSON-able object."""
        return asdict(self)


def graded(value: float, ok: float, warning: float) -> Status:
    """Judge a share by the least that is good and the least that will do."""
    return "ok" if value >= ok else "warning" if value >= warning else "failed"


def versions(backend: VectorBackend) -> Check:
    """Which versions are at work, ours and the vendor's."""
    found = {"knnlm-store": version("knnlm-store"), "numpy": np.__version__}
    found |= backend.versions()
    return Check("versions", "ok", ", ".join(f"{n} {v}" for n, v in found.items()), value=found)


def fingerprint(store: Datastore, model: Manifest | None) -> Check:
    """Which model wrote the datastore, and whether the model at hand may use it.

    Raises StoreMismatch if not.
    """
    manifest, storage = store.manifest, store.backend.spec().storage
    names = ("model", "architecture", "precision", "key", "transform", "dimension", "format")
    facts = {name: getattr(manifest, name) for name in names} | {"storage": storage}
    told = (
        f"{manifest.model} ({manifest.precision}), key {manifest.key}, "
        f"{manifest.key_dimension} dimensions as {storage}, format {manifest.format}"
    )
    if model is None:
        return Check(
            "fingerprint", "ok", f"{told}; not compared with a model (--model)", value=facts
        )
    warning = manifest.require_same(model, str(store.location))
    if warning:
        hint = "Load the model with --dtype as it was at ingest."
        return Check("fingerprint", "warning", warning, hint, facts)
    return Check("fingerprint", "ok", f"{told}; {model.model} gives the same keys", value=facts)


def catalog(store: Datastore, entries: int) -> Check:
    """Whether the documents' tokens are all there as entries, and nothing else is.

    entries: how many were counted; counted again where that does not fit, for a commit may have
    come between.
    """
    found = _census(store, entries)
    return found if found.status == "ok" else _census(store, store.backend.count())


def _census(store: Datastore, entries: int) -> Check:
    documents = tokens = stale = 0
    for document in scan_all(store.backend):
        stale += bool(document.leaving)
        if not document.forgotten:
            documents += 1
            tokens += document.version.tokens
    at_work = {i.document: i.is_abandoned for i in intents.scan(store.backend)}
    unfinished = stale + sum(at_work.values())
    busy = len(at_work) - sum(at_work.values())
    told = (
        f"{counted(documents, 'document')} of {counted(tokens, 'token')}, "
        f"{counted(entries, 'entry')}"
    )
    value = {"documents": documents, "tokens": tokens, "entries": entries, "unfinished": unfinished}
    again = "Run the same knnlm-store ingest again: it mends what was left."
    if unfinished:
        told += f"; {counted(unfinished, 'document')} left unfinished"
        return Check("catalog", "warning", told, again, value)
    if busy:
        told += f"; {counted(busy, 'document')} being written"
        return Check("catalog", "ok", told, value=value)
    if tokens != entries:
        what = "lost" if entries < tokens else "left over"
        hint = f"Entries were {what}; see which: knnlm-store verify {store.location}"
        return Check("catalog", "warning", told, hint, value)
    if not entries:
        told, hint = "the datastore is empty", f"Run: knnlm-store ingest --store {store.location}"
        return Check("catalog", "warning", told, f"{hint} FOLDER", value)
    return Check("catalog", "ok", told, value=value)


def distance_unit(queries: Float32, found: Neighbours) -> Check:
    """Whether a search's distances are squared L2, by those of the keys that came with them.

    queries: float32 `[q, d]`. found: what a search for them gave, with keys.
    """
    name = "distance unit"
    true, lengths = _true_distances(queries, found)
    usable = (found.tokens >= 0) & (true > _TOO_NEAR * lengths)
    if not usable.any():
        return Check(name, "warning", "not to be told: the nearest keys are all equal")
    told, true = found.distances[usable].astype(np.float64), true[usable]
    units = {"squared_l2": true, "l2": np.sqrt(true)}
    errors = {u: float(np.quantile(np.abs(told - d) / d, 0.9)) for u, d in units.items()}
    unit = min(errors, key=lambda u: errors[u])
    hint = "The mixture would be wrong: update the backend's adapter, or report it."
    if errors[unit] > _UNIT_ERROR:
        message = f"distances are off by {100 * errors['squared_l2']:.0f} % from squared L2"
        return Check(name, "failed", message, hint, "unknown")
    if unit != "squared_l2":
        return Check(name, "failed", "distances are the root of squared L2", hint, unit)
    return Check(name, "ok", f"squared L2, measured on {len(told):,} distances", value=unit)


def self_retrieval(sample: Entries, found: Neighbours) -> Check:
    """Which share of stored keys finds its own entry, or another one of an equal key.

    found: what a search for the sample's keys gave, with keys.
    """
    true, lengths = _true_distances(sample.keys, found)
    itself = (found.ids == sample.ids[:, None]) & (found.tokens == sample.tokens[:, None])
    equal = (found.tokens >= 0) & (true <= _EQUAL * lengths) & (found.ids != sample.ids[:, None])
    share = float(np.mean((itself | equal).any(axis=1)))
    status = graded(share, 0.99, 0.9)
    message = f"{share:.3f} of {counted(len(sample), 'stored key')} find their own entry"
    return Check("self-retrieval", status, message, "" if status == "ok" else _ANEW, share)


def _true_distances(queries: Float32, found: Neighbours) -> tuple[Any, Any]:
    """Squared L2, float64 `[q, k]`, between queries and the keys found; squared lengths, too."""
    assert found.keys is not None
    wide = queries.astype(np.float64)
    true = np.stack([((k - q) ** 2).sum(axis=1) for k, q in zip(found.keys, wide, strict=True)])
    return true, (wide**2).sum(axis=1)[:, None]


def recall(k: int, share: float, queries: int, scanned: int, expected: int) -> Check:
    """Which share of the k nearest entries a search finds."""
    status = graded(share, 0.95, 0.8)
    message = (
        f"{share:.3f} over {counted(queries, 'query')} against brute force on "
        f"{counted(scanned, 'entry')}"
    )
    if scanned != expected:
        message += f" ({expected:,} when the queries were drawn: it is being written)"
    return Check(f"recall@{k}", status, message, "" if status == "ok" else _ANEW, share)


def latency(
    backend: VectorBackend, queries: Float32, k: int, clock: Callable[[], float] = time.perf_counter
) -> Check:
    """How long a step of decoding waits: searches for one query each, as decoding makes them.

    queries: float32 `[q, d]`, taken in turn.
    """
    seconds = []
    for turn in range(_WARM_UPS + _TIMED):
        query = queries[turn % len(queries)][None]
        began = clock()
        backend.search(query, k, freshness=Freshness.FAST, timeout=TIMEOUT)
        seconds.append(clock() - began)
    p50, p95 = (float(1000 * v) for v in np.percentile(seconds[_WARM_UPS:], [50, 95]))
    message = f"p50 {p50:,.1f} ms, p95 {p95:,.1f} ms for one query at k={k}"
    value = {"p50": p50, "p95": p95}
    if p95 <= SLOW_MS:
        return Check("latency", "ok", message, value=value)
    message += f"; each token waits for one search, and {SLOW_MS:.0f} ms is long beside a step"
    hint = "Lower --k; of a server, see that its index is built and that it is near."
    return Check("latency", "warning", message, hint, value)
