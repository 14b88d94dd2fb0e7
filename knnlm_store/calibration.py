"""What to use for temperature, k and lambda before anybody fitted them.

No temperature is right everywhere (1 to 200 in the literature), so it is taken from the data: one
tenth of the median squared distance from an entry to its 10th neighbour in other documents.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from knnlm_store.calibrated import Calibration
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord
from knnlm_store.errors import StorageFull, StoreCorrupt, StoreNotWritable, UsageError
from knnlm_store.mixture import Fixed, LambdaPolicy, Mixture
from knnlm_store.policies import Ratio
from knnlm_store.values import DocumentFilter, Float32

_log = logging.getLogger(__name__)

DEFAULT_K = 1024
DEFAULT_LMBDA = 0.25
FITTED = ("bucketed", "learned")
"""Policies that are nothing before they are fitted."""
POLICIES = ("fixed", "ratio", *FITTED)

_RECORD = "temperature"
_DOCUMENTS, _ENTRIES, _NEIGHBOUR = 32, 8, 10


@dataclass(frozen=True, slots=True)
class Settled:
    """The mixture to use, and where it came from.

    calibrated: from `tune`. temperature_from_data: taken from distances in the datastore. note:
    what the user should know of it, if anything.
    """

    mixture: Mixture
    calibrated: bool = False
    temperature_from_data: bool = False
    note: str | None = None

    @property
    def as_tuned(self) -> str | None:
        """Say in a line what a calibration decided; None if it did not."""
        if not self.calibrated:
            return None
        if self.mixture.is_plain:
            return "as tuned: the plain model; this datastore did not pay on held-out text"
        return (
            f"as tuned: {self.mixture.policy.name} policy, k {self.mixture.k}, temperature "
            f"{self.mixture.temperature:.4g}"
        )

    def settings(self) -> dict[str, Any]:
        """Give the mixture's settings and their origin as a JSON-able object."""
        origin = "datastore" if self.temperature_from_data else "user"
        return {
            "k": self.mixture.k,
            "temperature": self.mixture.temperature,
            "temperature_from": "calibration" if self.calibrated else origin,
            "lmbda": getattr(self.mixture.policy, "lmbda", None),
            "policy": self.mixture.policy.name,
            "calibrated": self.calibrated,
        }


def default_mixture(
    store: Datastore,
    *,
    k: int | None = None,
    temperature: float | None = None,
    lmbda: float | None = None,
    policy: str | None = None,
) -> Mixture:
    """Fill in what the user did not say; see `settle`. What should be known of it is logged."""
    settled = settle(store, k=k, temperature=temperature, lmbda=lmbda, policy=policy)
    log_settled(store, settled)
    return settled.mixture


def log_settled(store: Datastore, settled: Settled) -> None:
    """Log that a calibration is used, and what should be known of it."""
    if settled.as_tuned:
        # who expects the datastore to speak must hear that it does not
        level = logging.WARNING if settled.mixture.is_plain else logging.INFO
        _log.log(level, "%s: %s", store.location, settled.as_tuned)
    if settled.note:
        _log.warning(settled.note)


def settle(
    store: Datastore,
    *,
    k: int | None = None,
    temperature: float | None = None,
    lmbda: float | None = None,
    policy: str | None = None,
) -> Settled:
    """Decide how neighbours are mixed in.

    Where nothing is said: as calibrated, which is the plain model where `tune` found nothing that
    pays, or else by the ratio rule at k 1024 and the datastore's own temperature. `lmbda` makes
    it fixed. `policy` names one of POLICIES; a calibration's own k and temperature go with it,
    unless others are given. Raises UsageError for what cannot be right, StoreCorrupt and
    StoreMismatch for a calibration that cannot be used.
    """
    _check(policy, k, temperature, lmbda)
    calibration = Calibration.read(store) if lmbda is None else None
    if calibration is not None and k is None and temperature is None:
        found = calibration.mixtures.get(policy or calibration.chosen)
        if found is not None:
            return Settled(found, calibrated=True, note=calibration.age(store))
    if policy in FITTED:
        raise UsageError(
            f"{store.location} has no {policy} policy that was fitted for it.",
            hint="Fit one with knnlm-store tune, and leave --k and --temperature out.",
        )
    chosen: LambdaPolicy = Ratio()
    if lmbda is not None or policy == "fixed":
        chosen = Fixed(DEFAULT_LMBDA if lmbda is None else lmbda)
    from_data = temperature is None
    if temperature is None:
        temperature = stored_temperature(store) or keep_temperature(store)
    note = None
    if calibration is not None and policy is None:
        note = "The calibration is not used: it has its own k and temperature."
    mixture = Mixture(k=DEFAULT_K if k is None else k, temperature=temperature, policy=chosen)
    return Settled(mixture, temperature_from_data=from_data, note=note)


def _check(
    policy: str | None, k: int | None, temperature: float | None, lmbda: float | None
) -> None:
    """Raise UsageError for settings that are wrong on any datastore."""
    if policy is not None and policy not in POLICIES:
        raise UsageError(f"{policy!r} is no policy.", hint=f"Use one of {', '.join(POLICIES)}.")
    if lmbda is not None and policy not in (None, "fixed"):
        raise UsageError(
            f"Lambda is not fixed under the {policy} policy.",
            hint="Leave --lmbda or --policy out.",
        )
    Mixture(
        k=DEFAULT_K if k is None else k,
        temperature=1.0 if temperature is None else temperature,
        policy=Fixed(DEFAULT_LMBDA if lmbda is None else lmbda),
    )


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
