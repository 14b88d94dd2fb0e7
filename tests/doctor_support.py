"""Datastores for the tests of `doctor` and `alias`, and adapters with a fault or an ability more.

The adapters are FAISS, so that they can be reached by URI; `install` puts them on the path as
pip would.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from knnlm_store import registry
from knnlm_store.abilities import Aliased
from knnlm_store.checks import Check
from knnlm_store.datastore import Datastore
from knnlm_store.doctor import Plan, Report, examine
from knnlm_store.documents import DocumentRecord, Version
from knnlm_store.errors import BackendUnavailable, StoreExists, StoreNotFound, UsageError
from knnlm_store.manifest import Manifest
from knnlm_store.values import Entries, Float32, Freshness, Int64, Location, Neighbours, Spec
from knnlm_store_faiss import FaissBackend
from tests.faiss_support import clustered

DIMENSION = 16
APART = 10_000  # between the numbers of documents


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": "little",
        "architecture": "LlamaForCausalLM",
        "shape": {"model_type": "llama"},
        "precision": "float32",
        "tokenizer": "digest",
        "key": "last_ffn_input",
        "dimension": DIMENSION,
        "document_start": 0,
        "window": 64,
        "created": "2024-01-01T00:00:00",
        "probe": np.ones((3, DIMENSION), np.float32),
    }
    return Manifest(**values | changes)


def entries(keys: Float32, number: int) -> Entries:
    """A document's entries; each has a token of its own."""
    positions = np.arange(len(keys), dtype=np.int64)
    return Entries(keys, positions + number % 1000, positions * 0 + number, positions)


def record(number: int, tokens: int, stale: tuple[int, ...] = ()) -> DocumentRecord:
    version = Version(number, tokens, f"digest {number}", 0, tokens, 0.0)
    return DocumentRecord("s", f"{number}.txt", {}, version, stale)


def put(store: Datastore, *records: DocumentRecord) -> None:
    store.backend.put_records({f"document/{r.id}": r.encode() for r in records})


def fill(store: Datastore, *lengths: int) -> Entries:
    """Put documents of so many tokens into a datastore, and into its catalog."""
    made = []
    for i, length in enumerate(lengths):
        made.append(entries(clustered(length, DIMENSION, seed=i + 1), number=(i + 1) * APART))
        store.backend.upsert(made[-1])
        put(store, record((i + 1) * APART, length))
    store.backend.flush()
    return Entries.concatenate(made)


def filled(folder: Path, *lengths: int, scheme: str = "faiss", storage: str = "float16") -> str:
    """Make a datastore in a folder; gives its URI."""
    uri = f"{scheme}:{folder}/law"
    with Datastore.open_or_create(uri, manifest(), storage) as store:
        fill(store, *lengths)
    return uri


def install(site: Path, monkeypatch: pytest.MonkeyPatch, adapters: Mapping[str, type]) -> None:
    """Put a distribution with these adapters of this module on sys.path, as pip would."""
    info = site / "knnlm_faults-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: knnlm-faults\nVersion: 1.0\n")
    points = [f"{s} = {__name__}:{adapter.__name__}" for s, adapter in adapters.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *points]))
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()


# -- what the doctor says --------------------------------------------------------------------------

NAMES = [
    "connection", "versions", "fingerprint", "catalog", "sample", "distance unit",
    "self-retrieval", "recall@32", "recall@100", "latency",
]  # fmt: skip
FEW = Plan(k=100, sample=20)


def checked(uri: str, plan: Plan = FEW, **options: Any) -> Report:
    return examine(registry.parse(uri), plan, **options)


def named(report: Report, name: str) -> Check:
    (found,) = (check for check in report.checks if check.name == name)
    return found


def statuses(report: Report) -> dict[str, str]:
    """Names of the checks that were not simply ok, with their status."""
    return {check.name: check.status for check in report.checks if check.status != "ok"}


# -- faults ----------------------------------------------------------------------------------------


class Changed(FaissBackend):
    """Searches as FAISS does, then changes what was found."""

    def _search(self, queries: Float32, k: int, *rest: Any) -> Neighbours:
        return self.changed(super()._search(queries, k, *rest).sorted())

    def changed(self, found: Neighbours) -> Neighbours:
        raise NotImplementedError


class Rooted(Changed):
    """Forgets to square what the vendor gives."""

    def changed(self, found: Neighbours) -> Neighbours:
        return replace(found, distances=np.sqrt(found.distances))


class Halved(Changed):
    """Gives half of the squared distance."""

    def changed(self, found: Neighbours) -> Neighbours:
        return replace(found, distances=found.distances * np.float32(0.5))


class Forgetful(Changed):
    """Loses every third neighbour, never the first."""

    def changed(self, found: Neighbours) -> Neighbours:
        kept = [i for i in range(found.distances.shape[1]) if i % 3 != 1]
        return found._each(lambda array: array[:, kept])


class Muddled(Changed):
    """Gives each neighbour the token of another."""

    def changed(self, found: Neighbours) -> Neighbours:
        return replace(found, tokens=np.where(found.tokens < 0, -1, found.tokens + 1))


class Unsearchable(FaissBackend):
    """Everything is there; no search is answered."""

    def _search(self, *_: Any) -> Neighbours:
        raise BackendUnavailable("The index is not loaded.", hint="Load it.")


class Late(FaissBackend):
    """Every fifth search of decoding's kind takes 0.15 s longer."""

    def _search(self, queries: Float32, k: int, within: Any, freshness: Any, *r: Any) -> Neighbours:
        self.calls = getattr(self, "calls", 0) + (freshness is Freshness.FAST)
        if freshness is Freshness.FAST and self.calls % 5 == 0:
            time.sleep(0.15)
        return super()._search(queries, k, within, freshness, *r)


class Unreachable(FaissBackend):
    """A place that does not answer."""

    @classmethod
    def connect(cls, location: Location) -> Self:
        raise BackendUnavailable(f"{location.root} does not answer.", hint="Start the server.")


class Noting(FaissBackend):
    """Notes what searches ask for, and how many keys scans read."""

    asked: ClassVar[list[tuple[int, int, Freshness, float | None]]] = []
    keys_read: ClassVar[list[int]] = []

    def _search(
        self, queries: Float32, k: int, within: Any, freshness: Freshness, w: bool, timeout: Any
    ) -> Neighbours:
        self.asked.append((len(queries), k, freshness, timeout))
        return super()._search(queries, k, within, freshness, w, timeout)

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Any:
        for batch in super()._scan(with_keys, documents, batch_size):
            self.keys_read.append(len(batch) * with_keys)
            yield batch


# -- abilities -------------------------------------------------------------------------------------


class Linked(FaissBackend, Aliased):
    """A backend on a server, of which an alias is a symbolic link, and with an option."""

    options: ClassVar[Mapping[str, str]] = {"colour": "red or blue", "shards": "how many"}
    default_root: ClassVar[str] = "//localhost:1"
    made_with: ClassVar[list[Spec]] = []

    def check_spec(self, spec: Spec) -> None:
        super().check_spec(spec)
        if spec.options.get("colour", "red") not in ("red", "blue"):
            raise UsageError("colour is red or blue.", hint="Use --option colour=red.")

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        super().create(spec, records)
        self.made_with.append(spec)

    @classmethod
    def connect(cls, location: Location) -> Self:
        path = Path(location.root, location.name)
        real = replace(location, name=path.resolve().name) if path.is_symlink() else location
        made = super().connect(real)
        made.through = location
        return made

    through: Location

    @classmethod
    def names(cls, location: Location) -> list[str]:
        found = super().names(location)
        return [name for name in found if not Path(location.root, name).is_symlink()]

    def drop(self) -> None:
        if self.through != self._location:
            raise UsageError(f"{self.through} is an alias.", hint="Name the datastore.")
        super().drop()

    def set_alias(self, alias: str) -> None:
        path = Path(self._location.root, alias)
        if path.exists() and not path.is_symlink():
            raise StoreExists(f"There is a datastore of the name {alias}.", hint="Take another.")
        fresh = path.with_name(f"{alias}.new")
        fresh.symlink_to(self._location.name)
        os.replace(fresh, path)

    @classmethod
    def remove_alias(cls, location: Location) -> None:
        path = Path(location.root, location.name)
        if not path.is_symlink():
            raise StoreNotFound(f"There is no alias {location}.")
        path.unlink()

    @classmethod
    def aliases(cls, location: Location) -> dict[str, str]:
        links = [path for path in Path(location.root).glob("*") if path.is_symlink()]
        return {path.name: path.resolve().name for path in links}


def brute_force(queries: Float32, held: Entries) -> Any:
    """Squared distances float64 `[q, n]`, one pair at a time: owes nothing to the code tested."""
    wide = held.keys.astype(np.float64)
    return np.stack([((wide - q) ** 2).sum(axis=1) for q in queries.astype(np.float64)])


def contents(backend: FaissBackend) -> Entries:
    return Entries.concatenate(list(backend.scan(with_keys=True)))
