"""The doctor's checks on healthy datastores, and on each with one fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store import checks
from knnlm_store.datastore import Datastore
from knnlm_store.doctor import Plan
from knnlm_store.errors import UsageError
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Entries, Freshness, Location, Neighbours, Spec
from tests import doctor_support as support
from tests.doctor_support import (
    APART,
    DIMENSION,
    NAMES,
    checked,
    entries,
    filled,
    install,
    manifest,
    named,
    put,
    record,
    statuses,
)
from tests.faiss_support import clustered

FAULTS = (
    support.Rooted, support.Halved, support.Forgetful, support.Muddled, support.Unsearchable,
    support.Late, support.Noting, support.Unreachable,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {adapter.__name__.lower(): adapter for adapter in FAULTS}
    install(tmp_path / "site", monkeypatch, named)


# -- healthy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_a_healthy_datastore(tmp_path: Path, storage: str) -> None:
    uri = filled(tmp_path, 300, 200, storage=storage)
    report = checked(uri)
    assert statuses(report) == {}
    assert [check.name for check in report.checks] == NAMES
    assert not any(check.hint for check in report.checks)
    value = report.json()
    json.dumps(value)
    assert {n: value[n] for n in ("store", "status", "k", "recall", "recall_at")} == {
        "store": uri, "status": "ok", "k": 100, "recall": 1.0,
        "recall_at": {"32": 1.0, "100": 1.0},
    }  # fmt: skip
    assert (value["distance_unit"], value["self_retrieval"]) == ("squared_l2", 1.0)
    assert 0 < value["latency_ms"]["p50"] <= value["latency_ms"]["p95"] < 1000
    assert value["versions"]["numpy"] == np.__version__
    assert [check["name"] for check in value["checks"]] == NAMES


def test_k_is_cut_to_the_entries(tmp_path: Path) -> None:
    uri = filled(tmp_path, 50)
    report = checked(uri, Plan())
    assert (report.k, report.value("recall@50")) == (50, 1.0)
    assert report.json()["recall"] == 1.0
    small = checked(uri, Plan(k=5))
    assert [c.name for c in small.checks if c.name.startswith("recall")] == ["recall@5"]


def test_how_it_searches(tmp_path: Path) -> None:
    """Latency as in decoding: one query, nothing to wait for but a deadline; else what is true."""
    uri = filled(tmp_path, 400, scheme="noting")
    support.Noting.asked.clear()
    checked(uri)
    asked = support.Noting.asked
    fast = [a for a in asked if a[2] is Freshness.FAST]
    assert fast == [(1, 100, Freshness.FAST, 2.0)] * 53
    assert {a[2:] for a in asked if a not in fast} == {(Freshness.LATEST, None)}
    assert {a[1] for a in asked if a not in fast} == {10, 32, 100}


def test_quick_reads_the_first_entries_only(tmp_path: Path) -> None:
    uri = filled(tmp_path, 9000, scheme="noting")
    support.Noting.keys_read.clear()
    report = checked(uri, Plan(k=100, sample=20, quick=True))
    assert sum(support.Noting.keys_read) == 4096
    assert statuses(report) == {"recall@32": "not run", "recall@100": "not run"}
    assert report.status == "ok"
    value = report.json()
    assert (value["recall"], value["k"], value["self_retrieval"]) == (None, 100, 1.0)
    checked(uri)
    assert sum(support.Noting.keys_read) == 4096 + 2 * 9000  # one document: read for the sample


def test_a_seed_measures_the_same_again(tmp_path: Path) -> None:
    uri = filled(tmp_path, 600, scheme="forgetful")
    one, again, other = (checked(uri, Plan(k=100, sample=7, seed=s)) for s in (1, 1, 2))
    assert one.value("recall@100") == again.value("recall@100")
    assert {c.name for c in one.checks} == {c.name for c in other.checks}


def test_scans_can_be_watched(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def watch(what: str, expected: int, batches: Iterable[Entries]) -> Iterator[Entries]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch)
        seen.append((what, expected, done))

    checked(filled(tmp_path, 300, 5000), watch=watch)
    assert seen == [("sample", 5300, 5300), ("recall", 5300, 5300)]


def test_no_plan_of_nothing() -> None:
    with pytest.raises(UsageError, match="k must be at least 1, not 0"):
        Plan(k=0)
    with pytest.raises(UsageError, match="sample must be at least 1, not -1"):
        Plan(sample=-1)


# -- searches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "unit", "message"),
    [
        ("rooted", "l2", "distances are the root of squared L2"),
        ("halved", "unknown", "distances are off by 50 % from squared L2"),
    ],
)
def test_another_unit(tmp_path: Path, scheme: str, unit: str, message: str) -> None:
    report = checked(filled(tmp_path, 500, scheme=scheme))
    assert statuses(report) == {"distance unit": "failed"}
    assert report.status == "failed"
    assert report.json()["distance_unit"] == unit
    assert named(report, "distance unit").message == message
    assert "adapter" in named(report, "distance unit").hint


@pytest.mark.parametrize("scale", [0.01, 0.2, 5.0, 100.0])
def test_units_are_told_apart_at_every_scale(scale: float) -> None:
    """A root is smaller than its square or larger, and all but equal for distances about 1."""
    keys = clustered(300, DIMENSION, seed=1) * np.float32(scale)
    backend = MemoryBackend(Location("memory", "", "memory"))
    backend.create(Spec(DIMENSION), {})
    backend.upsert(entries(keys, APART))
    found = backend.search(keys[:20], 10, with_keys=True)
    assert checks.distance_unit(keys[:20], found).value == "squared_l2"
    rooted = replace(found, distances=np.sqrt(found.distances))
    assert checks.distance_unit(keys[:20], rooted).value == "l2"


def test_neighbours_that_are_lost(tmp_path: Path) -> None:
    report = checked(filled(tmp_path, 500, scheme="forgetful"))
    assert statuses(report) == {"recall@32": "failed", "recall@100": "failed"}
    assert report.value("recall@100") == pytest.approx(0.67, abs=1e-6)
    assert report.value("recall@32") == pytest.approx(21 / 32, abs=1e-6)
    assert "compact" in named(report, "recall@100").hint


@pytest.mark.parametrize(
    ("share", "status"),
    [(0.95, "ok"), (0.949, "warning"), (0.8, "warning"), (0.799, "failed"), (0.0, "failed")],
)
def test_grades_of_recall(share: float, status: str) -> None:
    check = checks.recall(1024, share, 64, 10_000, 10_000)
    assert (check.status, check.value) == (status, share)
    assert bool(check.hint) is (status != "ok")


def test_tokens_of_others(tmp_path: Path) -> None:
    report = checked(filled(tmp_path, 500, scheme="muddled"))
    assert statuses(report) == {"self-retrieval": "failed"}
    assert report.json()["self_retrieval"] == 0


def test_equal_keys_are_as_good(tmp_path: Path) -> None:
    """Of 300 entries with one key the first ten need not hold the one that is searched for."""
    with Datastore.open_or_create(f"faiss:{tmp_path}/law", manifest()) as store:
        store.backend.upsert(entries(np.ones((300, DIMENSION), np.float32), APART))
        put(store, record(APART, 300))
    report = checked(f"faiss:{tmp_path}/law")
    assert statuses(report) == {"distance unit": "warning"}
    assert report.value("self-retrieval") == 1.0
    assert report.json()["distance_unit"] is None
    assert report.json()["recall"] == 1.0


def test_one_entry(tmp_path: Path) -> None:
    report = checked(filled(tmp_path, 1))
    assert statuses(report) == {"distance unit": "warning"}
    assert (report.k, report.json()["recall"]) == (1, 1.0)


def test_searches_that_are_late(tmp_path: Path) -> None:
    report = checked(filled(tmp_path, 200, scheme="late"))
    assert statuses(report) == {"latency": "warning"}
    assert report.status == "warning"
    p50, p95 = (report.json()["latency_ms"][p] for p in ("p50", "p95"))
    assert p50 < 100 < 150 <= p95
    assert "each token waits for one search" in named(report, "latency").message


def test_the_first_searches_are_not_timed() -> None:
    """They also pay for opening files; of the others, every one counts."""
    keys = clustered(60, DIMENSION, seed=1)
    seen: list[Any] = []

    class Remembering(MemoryBackend):
        def _search(self, queries: Any, *rest: Any) -> Neighbours:
            seen.append(queries[0].tobytes())
            return super()._search(queries, *rest)

    backend = Remembering(Location("memory", "", "memory"))
    backend.create(Spec(DIMENSION), {})
    backend.upsert(entries(keys, APART))
    milliseconds = [9000.0] * 3 + [float(i) for i in range(1, 51)]
    times = np.repeat(np.cumsum([0.0, *milliseconds]) / 1000, 2)[1:-1]
    clock: Callable[[], float] = iter(times.tolist()).__next__
    check = checks.latency(backend, keys, 5, clock)
    assert check.value == {"p50": pytest.approx(25.5), "p95": pytest.approx(47.55)}
    assert (len(seen), len(set(seen))) == (53, 53)


def test_searches_that_fail(tmp_path: Path) -> None:
    """What needs none is checked all the same."""
    report = checked(filled(tmp_path, 200, scheme="unsearchable"))
    failed = dict.fromkeys(("distance unit", "recall@32", "recall@100", "latency"), "failed")
    assert statuses(report) == failed | {"self-retrieval": "not run"}
    for name in failed:
        check = named(report, name)
        assert (check.message, check.hint) == ("The index is not loaded.", "Load it.")
