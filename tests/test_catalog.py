"""The catalog: numbers that never clash, records that survive, intents that belong to somebody."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from knnlm_store import catalog
from knnlm_store.catalog import LEASE, Catalog, DocumentRecord, Version, scan
from knnlm_store.corpus import Document
from knnlm_store.errors import StoreCorrupt, StoreError
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.models import LanguageModel
from knnlm_store.values import MAX_ID
from tests.ingest_support import (
    assert_whole,
    bare,
    corpus,
    dead_writer,
    new_store,
    prose,
    some_entries,
)

ODD = [
    "ä/ö.txt",
    "a'b\"c",
    "%_\\",
    "tab\tline\n",
    "  ",
    "日本",
    "🙂",
    "a" * 3000,
    "\0",
    "document/x",
]


def version(number: int, tokens: int = 5, writer: str = "", at: float | None = None) -> Version:
    when = time.time() if at is None else at
    return Version(number, tokens, f"digest{number}", 0, 9, when, writer)


# -- numbers -----------------------------------------------------------------------------------

NUMBER = """
from knnlm_store.catalog import Catalog
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Location, Spec
backend = MemoryBackend.connect(Location("memory", "", "memory"))
backend.create(Spec(4), {})
made = Catalog(backend).new_version("s/ä", "d" * 32, 70_000, 1)
print(made.number, made.salt)
"""


def test_a_number_depends_on_document_and_content_alone() -> None:
    """In every process, and in every release: it is written down here."""
    digest = hashlib.sha256(json.dumps(["s/ä", "d" * 32, 0]).encode()).digest()
    assert int.from_bytes(digest[:8], "big") % 2**63 == 5165156417574708096
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", NUMBER],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        assert printed.split() == ["5165156417574708096", "0"]


def test_ranges_that_would_touch_get_a_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_hash", lambda document, _, salt: 1000 + 60 * salt)
    known = Catalog(bare())
    made = [known.new_version(f"s/{i}", "d", n, 0) for i, n in enumerate([50, 9, 60, 1, 59, 10])]
    assert [v.salt for v in made] == [0, 1, 2, 4, 5, 6]
    spans = sorted((v.number, v.number + v.tokens) for v in made)
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))


@pytest.mark.parametrize(("gap", "salt"), [(-11, 0), (-10, 1), (0, 1), (20, 1), (21, 0)])
def test_one_id_stays_unused_between_versions(
    monkeypatch: pytest.MonkeyPatch, gap: int, salt: int
) -> None:
    numbers = {"s/old": 1000, "s/new": 1000 + gap}
    monkeypatch.setattr(catalog, "_hash", lambda document, _, salt: numbers[document] + 500 * salt)
    backend = bare([DocumentRecord("s", "old", version=version(1000, 20))])
    assert Catalog(backend).new_version("s/new", "d", 10, 0).salt == salt


def test_ids_stay_below_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_hash", lambda *key: MAX_ID - 10 if key[2] == 0 else 77)
    assert Catalog(bare()).new_version("s/a", "d", 10, 0).number == 77


def test_salted_documents_are_found_again(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document wants the same ids; unchanged ones are skipped, all entries stand."""
    monkeypatch.setattr(catalog, "_hash", lambda document, digest, salt: 100 * salt)
    texts = {str(i): prose(i, 60 + i) for i in range(5)}
    store = new_store(language_model)
    ingest(corpus(texts), language_model, store)
    assert_whole(store)
    salts = [d.version.salt for d in store.documents() if d.version]
    assert sorted(salts) == [0, 1, 2, 3, 4]
    again = ingest(corpus(texts), language_model, store)
    assert again.skipped == 5
    changed = ingest(corpus({**texts, "2": "changed"}), language_model, store)
    assert changed.replaced == 1
    assert_whole(store)


# -- records -----------------------------------------------------------------------------------


def test_odd_names(language_model: LanguageModel, tmp_path: Path) -> None:
    here, there = new_store(language_model), new_store(language_model, f"faiss:{tmp_path}/x")
    stream = [Document(source, name, "some text", {}, 9) for source in ("s", "s t") for name in ODD]
    for store in (here, there):
        assert ingest(stream, language_model, store).added == len(stream)
        assert ingest(stream, language_model, store).skipped == len(stream)
        assert_whole(store)
        assert {d.id for d in store.documents()} == {d.id for d in stream}
        Catalog(store.backend).remove(d.id for d in stream[1:])
        assert [d.id for d in store.documents()] == [stream[0].id]
    assert stream[0].id == "s/ä/ö.txt"
    there.close()


def test_records_come_back_as_they_were() -> None:
    record = DocumentRecord(
        "s", "a/b", {"x": [1, None, "ü"]}, version(3), version(2**62, 9, "h:1:2:3"), (4, 2**61)
    )
    assert list(scan(bare([record]))) == [record]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"\xff{}",
        b"{}",
        b'{"source":"s","name":"a","version":{"number":1},"intent":null,"stale":[]}',
        b'{"source":"s","name":"a","version":null,"intent":null,"stale":3}',
        b'{"source":"s","name":"a","version":null,"intent":null,"stale":[],"more":1}',
    ],
)
def test_a_corrupt_record(value: bytes) -> None:
    backend = bare()
    backend.put_records({"document/s/a": value})
    with pytest.raises(StoreCorrupt, match=r"The catalog's record 'document/s/a' cannot be read\."):
        Catalog(backend)


# -- intents -----------------------------------------------------------------------------------


def interrupted(writer: str, at: float | None = None) -> MemoryBackend:
    """A changed document and a new one, both with entries of the version being written."""
    at = time.time() if at is None else at
    backend = bare(
        [
            DocumentRecord("s", "changed", {}, version(100), version(200, 5, writer, at)),
            DocumentRecord("s", "new", {}, None, version(300, 5, writer, at)),
            DocumentRecord("s", "other", {}, version(400)),
        ]
    )
    for number in (100, 200, 300, 400):
        backend.upsert(some_entries(number, 5))
    return backend


def numbers(backend: MemoryBackend) -> set[int]:
    return {int(n) for batch in backend.scan() for n in batch.documents}


def untouched(backend: MemoryBackend) -> bool:
    before = dict(backend.scan_records(""))
    mended = Catalog(backend).recover()
    return mended == 0 and dict(backend.scan_records("")) == before and len(numbers(backend)) == 4


def assert_undone(backend: MemoryBackend) -> None:
    assert Catalog(backend).recover() == 2
    assert numbers(backend) == {100, 400}
    records = list(scan(backend))
    assert [d.name for d in records] == ["changed", "other"]
    assert all(d.intent is None for d in records)
    after = dict(backend.scan_records(""))
    assert Catalog(backend).recover() == 0
    assert dict(backend.scan_records("")) == after


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def named(process: subprocess.Popen[bytes], started: str | None = None) -> str:
    when = started or Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()}:{process.pid}:{when}:0"


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="start times are read from /proc"
)


@needs_proc
def test_intents_of_a_live_process_are_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    backend = interrupted(named(sleeper))
    assert untouched(backend)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while untouched(backend) and time.monotonic() < deadline:  # a zombie first: nobody waited
        time.sleep(0.01)
    assert numbers(backend) == {100, 400}


def test_intents_of_a_dead_process_are_undone() -> None:
    assert_undone(interrupted(dead_writer()))


@needs_proc
def test_a_process_with_a_reused_pid_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    assert_undone(interrupted(named(sleeper, started="1")))


@pytest.mark.parametrize("writer", ["", "no name", ":::", f"{socket.gethostname()}:x:1:0"])
def test_a_name_that_nobody_has(writer: str) -> None:
    assert_undone(interrupted(writer, at=time.time() - LEASE - 1))


def test_another_machine_has_its_lease() -> None:
    assert untouched(interrupted("elsewhere:1:1:0", time.time() - LEASE + 60))
    assert_undone(interrupted("elsewhere:1:1:0", time.time() - LEASE - 1))


def test_this_process_owns_what_it_has_at_work() -> None:
    backend = bare()
    mine = Catalog(backend)
    mine.begin_writing()
    mine.put([DocumentRecord("s", "a", intent=mine.new_version("s/a", "d", 5, 0))])
    assert Catalog(backend).recover() == 0
    mine.end_writing()
    assert Catalog(backend).recover() == 1
    assert list(scan(backend)) == []


@needs_proc
def test_stale_entries_go_and_a_live_intent_stays(sleeper: subprocess.Popen[bytes]) -> None:
    """A run that removes what another left behind must not take the entries in hand with it."""
    backend = interrupted(named(sleeper))
    first = next(scan(backend))
    Catalog(backend).put([replace(first, stale=(400,))])
    assert Catalog(backend).recover() == 1
    assert numbers(backend) == {100, 200, 300}
    assert next(scan(backend)) == first


def test_commit_and_settle() -> None:
    backend = interrupted("")
    known = Catalog(backend)
    known.commit(list(known))
    assert numbers(backend) == {200, 300, 400}
    assert [d.version.number for d in known if d.version] == [200, 300, 400]
    assert [d.version.number for d in Catalog(backend) if d.version] == [200, 300, 400]
    assert all(d.intent is None and d.stale == () for d in scan(backend))
    assert len(known) == 3


def test_commit_notices_that_its_entries_are_gone() -> None:
    """Another machine took the intents for abandoned ones and removed what was written."""
    backend = interrupted("")
    known = Catalog(backend)
    before = [d.encode() for d in scan(backend)]
    gone = next(d for d in known if d.intent)
    assert gone.intent is not None
    backend.delete([gone.intent.number])
    with pytest.raises(StoreError, match="another process removed them") as caught:
        known.commit(list(known))
    assert caught.value.hint == "Run the same command again."
    assert [d.encode() for d in scan(backend)] == before


def test_removed_documents_give_their_ids_back() -> None:
    known = Catalog(bare())
    first = known.new_version("s/a", "d", 30, 0)
    known.put([DocumentRecord("s", "a", version=first)])
    known.remove(["s/a"])
    assert known.get("s/a") is None
    assert known.new_version("s/a", "d", 30, 0).number == first.number
