"""The catalog: numbers that never clash, records that come back as they were."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from knnlm_store import catalog
from knnlm_store.catalog import Catalog
from knnlm_store.corpus import Document
from knnlm_store.documents import scan
from knnlm_store.errors import StoreCorrupt
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.values import MAX_ID
from tests.ingest_support import (
    assert_whole,
    bare,
    corpus,
    new_store,
    prose,
    record,
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
    "intent/x",
]


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
    backend = bare([record("old", 1000, 20)])
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
    salts = [d.version.salt for d in store.documents()]
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
        changed = [replace(d, text="another") for d in stream]
        assert ingest(changed, language_model, store).replaced == len(stream)
        assert_whole(store)
    assert stream[0].id == "s/ä/ö.txt"
    there.close()


def test_records_come_back_as_they_were() -> None:
    kept = record("a/b", 2**62, 9, metadata={"x": [1, None, "ü"]}, stale=(4, 2**61))
    assert list(scan(bare([kept]))) == [kept]


VERSION = '{"number":1,"tokens":1,"digest":"d","salt":0,"size":1,"at":0.5}'


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"\xff{}",
        b"{}",
        b'{"source":"s","name":"a","metadata":{},"version":{"number":1},"stale":[]}',
        b'{"source":"s","name":"a","metadata":{},"version":null,"stale":[]}',
        f'{{"source":"s","name":"a","metadata":{{}},"version":{VERSION}}}'.encode(),
        f'{{"source":"s","name":"a","metadata":{{}},"version":{VERSION},"stale":3}}'.encode(),
        f'{{"source":"s","name":"a","version":{VERSION},"stale":[]}}'.encode(),
        f'{{"source":"s","name":"a","metadata":{{}},"version":{VERSION},"stale":[],"x":1}}'.encode(),
    ],
)
def test_a_corrupt_record(value: bytes) -> None:
    backend = bare()
    backend.put_records({"document/s/a": value})
    with pytest.raises(StoreCorrupt, match=r"The catalog's record 'document/s/a' cannot be read\."):
        Catalog(backend)
