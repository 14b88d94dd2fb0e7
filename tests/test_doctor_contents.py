"""The doctor on what a datastore holds, who wrote it, and whether it is there at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store import checks, intents
from knnlm_store.checks import Check
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, UnknownBackend
from knnlm_store.intents import Intent
from knnlm_store.values import Entries
from tests.doctor_support import (
    APART,
    DIMENSION,
    NAMES,
    Unreachable,
    checked,
    entries,
    fill,
    filled,
    install,
    manifest,
    named,
    put,
    record,
    statuses,
)
from tests.faiss_support import clustered
from tests.ingest_support import dead_writer


@pytest.fixture(autouse=True)
def _adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch, {"unreachable": Unreachable})


# -- contents --------------------------------------------------------------------------------------


def test_nothing_in_it(tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/law"
    Datastore.open_or_create(uri, manifest()).close()
    report = checked(uri)
    assert statuses(report) == {"catalog": "warning"} | dict.fromkeys(NAMES[4:], "not run")
    assert report.status == "warning"
    assert named(report, "catalog").message == "the datastore is empty"
    assert named(report, "catalog").hint == f"Run: knnlm-store ingest --store {uri} FOLDER"
    assert report.json()["latency_ms"] == {"p50": None, "p95": None}


def intent(document: str, writer: str) -> Intent:
    return Intent(document, 9 * APART, writes=True, writer=writer, at=time.time())


def lose_entries(store: Datastore) -> None:
    store.backend.delete([2 * APART])


def leave_entries_over(store: Datastore) -> None:
    store.backend.upsert(entries(clustered(5, DIMENSION, seed=9), 7 * APART))


def leave_a_stale_version(store: Datastore) -> None:
    leave_entries_over(store)
    put(store, record(APART, 300, stale=(7 * APART,)))


def die_while_writing(store: Datastore) -> None:
    leave_entries_over(store)
    intents.put(store.backend, [intent("s/new.txt", dead_writer())])


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lose_entries, "2 documents of 500 tokens, 300 entries", "knnlm-store verify"),
        (leave_entries_over, "2 documents of 500 tokens, 505 entries", "knnlm-store verify"),
        (leave_a_stale_version, "1 document left unfinished", "ingest again: it mends"),
        (die_while_writing, "1 document left unfinished", "ingest again: it mends"),
    ],
)
def test_entries_that_do_not_fit_the_catalog(
    tmp_path: Path, change: Callable[[Datastore], None], message: str, hint: str
) -> None:
    uri = filled(tmp_path, 300, 200)
    with Datastore.open(uri) as store:
        change(store)
        store.backend.flush()
    report = checked(uri)
    assert statuses(report) == {"catalog": "warning"}
    assert message in named(report, "catalog").message
    assert hint in named(report, "catalog").hint


def test_a_writer_at_work_is_no_fault(tmp_path: Path) -> None:
    uri = filled(tmp_path, 300, 200)
    with Datastore.open(uri) as store:
        leave_entries_over(store)
        intents.put(store.backend, [intent("s/new.txt", "elsewhere:1:1:0")])
    report = checked(uri)
    assert statuses(report) == {}
    assert named(report, "catalog").message.endswith("1 document being written")


def test_a_commit_between_the_two_counts_is_no_fault(tmp_path: Path) -> None:
    """The entries were counted before it, the documents after it: it is counted again."""
    with Datastore.open(filled(tmp_path, 300, 200)) as store:
        assert checks.catalog(store, 300).status == "ok"
        lose_entries(store)
        assert checks.catalog(store, store.backend.count()).status == "warning"


def test_entries_written_meanwhile_are_no_fault(tmp_path: Path) -> None:
    """They are no queries, and far away: recall stays, and the report says what happened."""
    uri = filled(tmp_path, 300, 200)

    def watch(what: str, _expected: int, batches: Iterable[Entries]) -> Iterable[Entries]:
        if what == "recall":
            with Datastore.open(uri) as store:
                far = clustered(40, DIMENSION, seed=9) + np.float32(500)
                store.backend.upsert(entries(far, 7 * APART))
                batches = list(store.backend.scan(with_keys=True))
        return batches

    report = checked(uri, watch=watch)
    assert statuses(report) == {}
    message = "1.000 over 20 queries against brute force on 540 entries"
    assert named(report, "recall@100").message.startswith(message + " (500 when")


def test_entries_gone_meanwhile(tmp_path: Path) -> None:
    uri = filled(tmp_path, 300, 200)

    def watch(what: str, _expected: int, batches: Iterable[Entries]) -> Iterator[Entries]:
        yield from batches
        if what == "sample":
            with Datastore.open(uri) as store:
                store.backend.delete([APART])

    report = checked(uri, watch=watch)
    assert statuses(report) == {"sample": "warning"}
    assert "were gone when they were read again" in named(report, "sample").message


# -- the place, and the model ----------------------------------------------------------------------


def test_a_place_that_does_not_answer(tmp_path: Path) -> None:
    report = checked(f"unreachable:{tmp_path}/law")
    assert [c.name for c in report.checks] == NAMES
    connection, *others = report.checks
    assert connection == Check(
        "connection", "failed", f"{tmp_path} does not answer.", "Start the server."
    )
    assert {check.status for check in others} == {"not run"}
    value = report.json()
    assert (value["status"], value["k"], value["recall"]) == ("failed", None, None)


def test_no_datastore_there(tmp_path: Path) -> None:
    report = checked(f"faiss:{tmp_path}/law")
    assert report.status == "failed"
    assert "knnlm-store ingest" in report.checks[0].hint


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    uri = filled(tmp_path, 10)
    with Datastore.open(uri) as store:
        store.backend.put_records({"manifest": b"{"})
    report = checked(uri)
    assert report.checks[0].message == f"The manifest of {uri} cannot be read."
    assert report.status == "failed"


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    """The catalog's fault is the catalog's: searches are measured."""
    uri = filled(tmp_path, 300)
    with Datastore.open(uri) as store:
        store.backend.put_records({"document/s/b": b"{"})
    report = checked(uri)
    assert statuses(report) == {"catalog": "failed"}
    assert report.json()["recall"] == 1.0


def test_what_is_no_datastores_fault_is_raised() -> None:
    with pytest.raises(UnknownBackend):
        checked("chroma:stores/law")


def other_model(_: Datastore) -> Any:
    return manifest(probe=-np.ones((3, DIMENSION), np.float32), model="other")


def rounded(_: Datastore) -> Any:
    return manifest(probe=np.full((3, DIMENSION), 1.01, np.float32), precision="bfloat16")


def no_model(_: Datastore) -> Any:
    raise ModelError("There is no model at ./missing.", hint="Check the path.")


@pytest.mark.parametrize(
    ("read_model", "status", "message"),
    [
        (None, "ok", "not compared with a model (--model)"),
        (lambda _: manifest(), "ok", "little gives the same keys"),
        (rounded, "warning", "Keys of little (bfloat16) differ by 1.0%"),
        (other_model, "failed", "was written by another model (little, float32); keys of other"),
        (no_model, "failed", "There is no model at ./missing."),
    ],
)
def test_fingerprint(tmp_path: Path, read_model: Any, status: str, message: str) -> None:
    uri = filled(tmp_path, 100)
    report = checked(uri, read_model=read_model)
    check = named(report, "fingerprint")
    assert check.status == status
    assert message in check.message
    assert bool(check.hint) is (status != "ok")
    assert set(statuses(report)) <= {"fingerprint"}


def test_fingerprint_tells_what_the_datastore_is(tmp_path: Path) -> None:
    with Datastore.open_or_create(f"faiss:{tmp_path}/law", manifest(), "int8") as store:
        fill(store, 100)
        check = checks.fingerprint(store, None)
    for fact in ("little (float32)", "key last_ffn_input", "16 dimensions as int8", "format 1"):
        assert fact in check.message
    assert check.value["storage"] == "int8"
