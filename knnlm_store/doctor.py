"""Whether a datastore does what it should: runs the checks that still make sense, reports all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from knnlm_store import checks, recall
from knnlm_store.backend import VectorBackend
from knnlm_store.calibration import DEFAULT_K
from knnlm_store.checks import Check, Status
from knnlm_store.datastore import Datastore
from knnlm_store.errors import KnnlmError, StoreError, UsageError
from knnlm_store.manifest import Manifest
from knnlm_store.values import Entries, Float32, Int64, Location, Neighbours
from knnlm_store.wording import counted

SMALL_K = 32
_FIRST = 10  # neighbours looked at for the unit and for self-retrieval
_QUICK_BATCHES, _QUICK_SIZE = 4, 1024

Watch: TypeAlias = Callable[[str, int, Iterable[Entries]], Iterable[Entries]]
"""Passes the batches of a scan through: what for, how many entries to expect, the batches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Raises UsageError for what cannot be right.

    k: neighbours of a search, cut to the entries there are. sample: entries that serve as
    queries. seed: of their drawing. quick: no scan of all entries, hence no recall.
    """

    k: int = DEFAULT_K
    sample: int = 64
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "sample"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} must be at least 1, not {getattr(self, name)}.",
                    hint="Leave it out for the default.",
                )


@dataclass
class Report:
    """What the checks found, in order. k: of the recall and the latency; 0 if none was measured."""

    uri: str
    k: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The worst of all checks."""
        found = {check.status for check in self.checks}
        return "failed" if "failed" in found else "warning" if "warning" in found else "ok"

    def value(self, name: str) -> Any:
        """Measure of a check; None if there is none."""
        return next((check.value for check in self.checks if check.name == name), None)

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        recalls = {c.name: c.value for c in self.checks if c.name.startswith("recall@")}
        return {
            "store": self.uri,
            "status": self.status,
            "k": self.k or None,
            "recall": self.value(f"recall@{self.k}"),
            "recall_at": {name.partition("@")[2]: share for name, share in recalls.items()},
            "distance_unit": self.value("distance unit"),
            "self_retrieval": self.value("self-retrieval"),
            "latency_ms": self.value("latency") or {"p50": None, "p95": None},
            "versions": self.value("versions"),
            "checks": [check.json() for check in self.checks],
        }


def examine(
    where: Location,
    plan: Plan,
    *,
    read_model: Callable[[Datastore], Manifest] | None = None,
    watch: Watch = lambda _what, _entries, batches: batches,
) -> Report:
    """Run all checks on a datastore; what goes wrong with it is in the report, not raised.

    read_model: describes the model that is to use the datastore, given that. Raises UsageError,
    UnknownBackend, MissingDependency.
    """
    report = Report(str(where))
    began = time.perf_counter()
    try:
        store = Datastore.open(where)
    except StoreError as error:
        report.checks.append(Check.failed_with("connection", error))
        for name in _Examination.names(plan.k):
            report.checks.append(Check(name, "not run", "the datastore could not be opened"))
        return report
    seconds = time.perf_counter() - began
    told = f"{where} opened in {1000 * seconds:,.0f} ms"
    report.checks.append(Check("connection", "ok", told, value=seconds))
    with store:
        _Examination(store, plan, report, read_model, watch).run()
    return report


class _Examination:
    """The checks of an open datastore, and what they hand on to each other."""

    def __init__(
        self,
        store: Datastore,
        plan: Plan,
        report: Report,
        read_model: Callable[[Datastore], Manifest] | None,
        watch: Watch,
    ) -> None:
        self._store, self._plan, self._report = store, plan, report
        self._read_model, self._watch = read_model, watch
        self._entries: int | None = None
        self._sample: Entries | None = None
        self._found: Neighbours | None = None

    @staticmethod
    def names(k: int) -> list[str]:
        """Names of the checks that `run` makes."""
        recalls = [f"recall@{each}" for each in sorted({min(SMALL_K, k), k})]
        head = ["versions", "fingerprint", "catalog", "sample", "distance unit", "self-retrieval"]
        return [*head, *recalls, "latency"]

    def run(self) -> None:
        """Run them all, in order."""
        self._attempt("versions", lambda: checks.versions(self._backend))
        self._attempt("fingerprint", self._fingerprint)
        self._attempt("catalog", self._catalog)
        self._attempt("sample", self._draw)
        self._on_sample("distance unit", self._distance_unit)
        self._on_sample("self-retrieval", self._self_retrieval)
        self._recalls()
        self._on_sample("latency", self._latency)

    @property
    def _backend(self) -> VectorBackend:
        return self._store.backend

    @property
    def _k(self) -> int:
        return min(self._plan.k, self._entries or self._plan.k)

    def _attempt(self, name: str, check: Callable[[], Check]) -> None:
        try:
            self._report.checks.append(check())
        except KnnlmError as error:
            self._report.checks.append(Check.failed_with(name, error))

    def _on_sample(self, name: str, check: Callable[[Entries], Check]) -> None:
        if (sample := self._sample) is None:
            self._not_run(name, "there are no sampled entries to search for")
        else:
            self._attempt(name, lambda: check(sample))

    def _not_run(self, name: str, why: str) -> None:
        self._report.checks.append(Check(name, "not run", why))

    def _fingerprint(self) -> Check:
        model = self._read_model and self._read_model(self._store)
        return checks.fingerprint(self._store, model)

    def _catalog(self) -> Check:
        self._entries = self._backend.count()
        return checks.catalog(self._store, self._entries)

    def _draw(self) -> Check:
        """Draw entries to search for, spread over the datastore, or from its beginning if quick."""
        plan, backend = self._plan, self._backend
        if plan.quick:
            first = islice(backend.scan(with_keys=True, batch_size=_QUICK_SIZE), _QUICK_BATCHES)
            chosen = sample = recall.choose(first, plan.sample, plan.seed)
        else:
            batches = self._watch("sample", self._entries or 0, backend.scan())
            chosen = recall.choose(batches, plan.sample, plan.seed)
            sample = None if chosen is None else recall.with_keys(backend, chosen)
        if chosen is None or sample is None:
            return Check("sample", "not run", "there are no entries")
        if not len(sample):
            return Check("sample", "failed", "no entry could be read again", "Run it again.")
        self._sample = sample
        where = "the first ones" if plan.quick else "the whole datastore"
        told = f"{counted(len(sample), 'entry')}, drawn from {where}"
        if len(sample) < len(chosen):
            told += f"; {len(chosen) - len(sample)} more were gone when they were read again"
            return Check("sample", "warning", told, "Run it again while nothing is written.")
        return Check("sample", "ok", told, value=len(sample))

    def _distance_unit(self, sample: Entries) -> Check:
        k = min(_FIRST, self._k)
        self._found = self._backend.search(sample.keys, k, with_keys=True)
        return checks.distance_unit(sample.keys, self._found)

    def _self_retrieval(self, sample: Entries) -> Check:
        if self._found is None:
            return Check("self-retrieval", "not run", "the search before it failed")
        return checks.self_retrieval(sample, self._found)

    def _recalls(self) -> None:
        names = [name for name in self.names(self._k) if name.startswith("recall@")]
        if self._plan.quick or self._sample is None:
            why = "left out by --quick" if self._plan.quick else "there are no sampled entries"
            for name in names:
                self._not_run(name, why)
            return
        try:
            self._report.checks += self._measured(self._sample)
        except KnnlmError as error:
            self._report.checks += [Check.failed_with(name, error) for name in names]

    def _measured(self, sample: Entries) -> list[Check]:
        """Search first, then pass all entries by: what is written meanwhile is no fault."""
        queries, expected = sample.keys, self._entries or 0
        found = {k: self._ids(queries, k) for k in sorted({min(SMALL_K, self._k), self._k})}
        batches = self._watch("recall", expected, self._backend.scan(with_keys=True))
        shares, scanned = recall.recalls(queries, found, batches)
        self._report.k = self._k
        return [checks.recall(k, s, len(queries), scanned, expected) for k, s in shares.items()]

    def _ids(self, queries: Float32, k: int) -> Int64:
        """Entry ids `[q, k]` that searches give for queries `[q, d]`.

        One by one, as in decoding: of many at once a backend may see more, or compare all keys.
        """
        return np.concatenate([self._backend.search(q[None], k).ids for q in queries])

    def _latency(self, sample: Entries) -> Check:
        self._report.k = self._k
        return checks.latency(self._backend, sample.keys, self._k)
