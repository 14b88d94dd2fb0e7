"""`knnlm-store copy`, as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli_support import TEXTS, contents, run, write_corpus

SOURCE = "faiss:stores/law"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("copies")
    corpus = write_corpus(place / "law")
    done = run("ingest", "--store", f"faiss:{place}/stores/law", "--model", saved_model, corpus)
    assert done.code == 0, done.err
    return place


@pytest.fixture(autouse=True)
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "stores", tmp_path / "stores")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts(store: str) -> dict[str, Any]:
    return run("info", store, "--json").json()


def test_copy_and_copy_again(made: Path, saved_model: Path) -> None:
    """The summary says what was done; the copy serves in the place of the original."""
    total = sum(map(len, TEXTS.values()))
    done = run("copy", SOURCE, "faiss:backup/law")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "documents: 3 copied, 0 there already"
    assert lines[1].startswith(f"entries: {total:,} in ")
    assert lines[2] == f"verified: {total:,} entries counted, 24 compared in full"
    assert lines[3] == "datastore: faiss:backup/law, keys as float16"
    again = run("copy", SOURCE, "faiss:backup/law", "--json").json()
    assert again["documents"] == {"copied": 0, "skipped": 3}
    assert again["verified"]["entries"] == total
    old, new = facts(SOURCE), facts("faiss:backup/law")
    different = {"uri", "bytes"}
    assert {k: v for k, v in old.items() if k not in different} == {
        k: v for k, v in new.items() if k not in different
    }
    ingest = ["ingest", "--store", "faiss:backup/law", "--model", saved_model, made / "law"]
    assert run(*ingest, "--json").json()["documents"]["skipped"] == 3


def test_storage_of_the_copy() -> None:
    """The source's own, unless it is said; an existing copy is not converted."""
    assert facts(SOURCE)["storage"] == "float16"
    assert run("copy", SOURCE, "faiss:other/law", "--storage", "int8").code == 0
    assert facts("faiss:other/law")["storage"] == "int8"
    assert run("copy", "faiss:other/law", "faiss:third/law").code == 0
    assert facts("faiss:third/law")["storage"] == "int8"
    code, message, hint = run("copy", SOURCE, "faiss:other/law", "--storage", "float32").failure()
    assert (code, message) == (2, "faiss:other/law keeps keys as int8, not float32.")
    assert hint.startswith("Leave --storage out")


def test_what_cannot_be_copied(place: Path, saved_model: Path) -> None:
    """Nothing is made, and what is there stays as it is."""
    before = contents(SOURCE)
    code, message, _ = run("copy", SOURCE, SOURCE).failure()
    assert (code, message) == (2, "A datastore cannot be copied onto itself.")
    code, message, hint = run("copy", "faiss:stores/none", "faiss:backup/none").failure()
    assert (code, message) == (1, f"There is no datastore at {place}/stores/none.")
    assert hint.startswith("Make it with: knnlm-store ingest --store faiss:stores/none")
    assert not (place / "backup").exists()
    code, message, _ = run("copy", SOURCE, "memory:").failure()
    assert (code, message) == (2, "A datastore in memory would end with the command.")
    corpus = write_corpus(place / "other")
    options = ["--model", saved_model, "--key-module", "lm_head_input"]
    assert run("ingest", "--store", "faiss:stores/other", *options, corpus).code == 0
    other = contents("faiss:stores/other")
    code, message, _ = run("copy", SOURCE, "faiss:stores/other").failure()
    assert code == 1
    assert "with key 'lm_head_input', not 'last_ffn_input'" in message
    assert contents(SOURCE) == before
    assert contents("faiss:stores/other") == other
