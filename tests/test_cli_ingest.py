"""`knnlm-store ingest` as a user types it."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knnlm_store import intents
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import Change
from tests.cli_support import TEXTS, contents, documents, files, run, write_corpus

STORE = "faiss:stores/law"
TOKENS = {name: len(text) for name, text in TEXTS.items()}  # the tokenizer is of bytes


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "law")


def counts(report: dict[str, Any]) -> list[int]:
    return [report["documents"][what] for what in ("added", "replaced", "skipped", "failed")]


def test_first_second_and_changed(corpus: Path) -> None:
    first = run("ingest", "--store", STORE, corpus, "--json").json()
    assert counts(first) == [3, 0, 0, 0]
    assert first["tokens"] == first["store"]["entries"] == sum(TOKENS.values())
    assert first["seconds"] > 0
    assert first["problems"] == []
    before = contents(STORE)
    again = run("ingest", "--store", STORE, corpus, "--json").json()
    assert counts(again) == [0, 0, 3, 0]
    assert again["tokens"] == 0
    assert contents(STORE) == before
    (corpus / "a.txt").write_text("Repealed.")
    changed = run("ingest", "--store", STORE, corpus, "--json").json()
    assert counts(changed) == [0, 1, 2, 0]
    assert changed["tokens"] == len("Repealed.")
    assert changed["store"]["entries"] == sum(TOKENS.values()) - TOKENS["a.txt"] + 9
    assert set(documents(STORE)) == {"law/a.txt", "law/b.md", "law/deep/c.txt"}


def test_summary_for_people(corpus: Path) -> None:
    done = run("ingest", "--store", STORE, corpus)
    assert done.code == 0
    first, second, last = done.out.splitlines()
    assert first == "documents: 3 added, 0 replaced, 0 skipped, 0 failed"
    assert second.startswith(f"tokens: {sum(TOKENS.values())} in ")
    assert last == f"datastore: {STORE}, {sum(TOKENS.values())} entries"
    assert done.err == ""


def test_one_is_not_told_as_many(tmp_path: Path) -> None:
    write_corpus(tmp_path / "law", {"a.txt": "x"})
    assert run("ingest", "--store", STORE, "law").out.endswith(", 1 entry\n")
    assert run("documents", STORE).err == "1 document, 1 token\n"
    assert run("verify", STORE).out == "1 document, 1 entry: all is well\n"
    assert "1 added, 1 entry (" in run("history", STORE).out
    assert "1 document of 1 token, 1 entry\n" in run("doctor", STORE).out
    assert "forgotten: 1 document, 1 entry" in run("forget", "--store", STORE, "law/a.txt").out


def test_short_form_is_the_same_place(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run("ingest", "--store", STORE, corpus, "--json").json()["store"]
    default = run("ingest", "--backend", "faiss", "--name", "law", corpus, "--json").json()
    assert default["store"] == one
    assert counts(default) == [0, 0, 3, 0]
    by_url = run("ingest", "--backend", "faiss", "--url", tmp_path / "stores", corpus, "--json")
    assert counts(by_url.json()) == [0, 0, 3, 0]
    monkeypatch.setenv("KNNLM_STORE_URL", "elsewhere")
    named = run("ingest", "--backend", "faiss", corpus, "--json").json()
    assert named["store"]["uri"] == "faiss:elsewhere/law"
    assert counts(named) == [3, 0, 0, 0]
    same = run("ingest", "--store", STORE, corpus, "--json").json()
    assert same["store"] == one


def test_name_defaults_to_the_folders(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "Code of (1984)")
    done = run("ingest", "--backend", "faiss", corpus, "--json").json()
    assert done["store"]["uri"] == "faiss:stores/Code-of-1984"
    two = run("ingest", "--backend", "faiss", corpus, write_corpus(tmp_path / "x"))
    assert two.failure() == (2, "The datastore needs a name.", "Add --name NAME.")


def test_dry_run_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    planned = run("ingest", "--store", STORE, corpus, "--dry-run", "--json").json()
    assert planned["documents"] == 3
    assert planned["tokens"] == sum(TOKENS.values())
    assert planned["bytes"] >= planned["tokens"] * (2 * 32 + 4)
    assert planned["seconds"] > 0
    assert not (tmp_path / "stores").exists()
    run("ingest", "--store", STORE, corpus)
    before = files(tmp_path / "stores")
    (corpus / "new.txt").write_text("New.")
    told = run("ingest", "--store", STORE, corpus, "--dry-run")
    assert told.out.startswith("documents: 1 to write, 3 unchanged\ntokens: 4, one entry each\n")
    assert told.out.endswith(f"Nothing was written to {STORE}.\n")
    assert files(tmp_path / "stores") == before


def test_limit(corpus: Path) -> None:
    assert counts(run("ingest", "--store", STORE, corpus, "--limit", 2, "--json").json())[0] == 2
    assert counts(run("ingest", "--store", STORE, corpus, "--json").json()) == [1, 0, 2, 0]


def test_problems_are_named_on_stderr(corpus: Path) -> None:
    (corpus / "binary.txt").write_bytes(b"\0\1\2")
    (corpus / "empty.txt").touch()
    (corpus / "latin.txt").write_bytes("naïve [b]:a:".encode("latin-1"))
    done = run("ingest", "--store", STORE, corpus, "--json")
    assert counts(done.json()) == [3, 0, 1, 2]
    assert done.err.splitlines() == [
        f"failed: {corpus}/binary.txt: The file is binary: it holds NUL bytes.",
        f"skipped: {corpus}/empty.txt: The document is empty.",
        f"failed: {corpus}/latin.txt: The bytes are not utf-8: 0xef at offset 2.",
    ]
    assert [p["where"] for p in done.json()["problems"]] == [
        str(corpus / name) for name in ("binary.txt", "empty.txt", "latin.txt")
    ]


def test_datastores_below_the_folder_are_left_out(corpus: Path, tmp_path: Path) -> None:
    """Of each backend that keeps them in folders, and bundles; Milvus Lite's: test_milvus_lite."""
    assert run("ingest", "--store", STORE, corpus).code == 0
    assert run("copy", STORE, "qdrant:engine/law").code == 0
    assert run("export", STORE, "bundle").code == 0
    done = run("ingest", "--store", "faiss:all/all", ".", "--include", "*", "--json")
    assert counts(done.json()) == [3, 0, 1, 0]
    assert done.err == (
        "skipped: .: 3 folders of datastores or bundles left out: bundle, engine, stores/law.\n"
    )
    for place in ("bundle", "engine", "stores/law"):
        assert run("ingest", "--store", "faiss:all/new", place).failure() == (
            1,
            f"{place} is a datastore's folder or a bundle, and holds no texts.",
            "Name a folder of texts; a bundle is read by: knnlm-store import",
        )


def test_nothing_but_failures_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    done = run("ingest", "--store", STORE, tmp_path / "bad.txt", "--json")
    assert done.code == 1
    assert counts(json.loads(done.out)) == [0, 0, 0, 1]
    assert "0xff at offset 0" in done.err


def test_metadata_is_kept(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "text": "One.", "year": 1984, "tags": ["a"]},
        {"id": "y", "text": "Two.", "year": 1985},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    columns = ["--metadata-column", "year", "--metadata-column", "tags"]
    pairs = ["--metadata", "court=high", "--metadata", "note=a=b"]
    run("ingest", "--store", STORE, "rows.jsonl", *columns, *pairs)
    kept = {name: document.metadata for name, document in documents(STORE).items()}
    constant = {"court": "high", "note": "a=b"}
    assert kept["rows/x"] == {**constant, "year": 1984, "tags": ["a"]}
    assert kept["rows/y"] == {**constant, "year": 1985}


def test_metadata_columns_that_no_row_has(tmp_path: Path) -> None:
    """An error before anything is there; where a later row may have them, a warning."""
    rows = "".join(json.dumps({"id": n, "text": "One.", "year": n}) + "\n" for n in range(3))
    (tmp_path / "rows.jsonl").write_text(rows)
    wrong = ("--metadata-column", "yaer")
    for command in ("ingest", "sync"):
        code, message, hint = run(command, "--store", STORE, "rows.jsonl", *wrong).failure()
        assert code == 1
        assert message == "No row has the metadata column 'yaer'; there are: 'id', 'text', 'year'."
        assert hint.startswith("Did you mean 'year'?")
    assert not (tmp_path / "stores").exists()
    (tmp_path / "rows.jsonl").write_text(rows + "no JSON\n")
    warned = run("ingest", "--store", STORE, "rows.jsonl", *wrong, "--json")
    assert counts(json.loads(warned.out)) == [3, 0, 0, 2]
    assert warned.err.splitlines()[0] == (
        "warning: None of the first rows has the metadata column 'yaer'; there are: 'id', 'text', "
        "'year'."
    )


def test_every_kind_of_input(tmp_path: Path) -> None:
    row = {"number": "n1", "body": "Compressed."}
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wt") as lines:
        lines.write(json.dumps(row) + "\n")
    pq.write_table(pa.table({"number": ["n2"], "body": ["Columns."]}), tmp_path / "table.parquet")
    columns = ["--text-column", "body", "--id-column", "number"]
    kinds = ["zipped.jsonl.gz", "table.parquet"]
    done = run("ingest", "--store", STORE, *kinds, *columns, "--json").json()
    assert counts(done) == [2, 0, 0, 0]
    write_corpus(tmp_path / "law")
    globbed = run("ingest", "--store", STORE, "law/**/*.txt", "--exclude", "a.*", "--json").json()
    assert counts(globbed) == [1, 0, 0, 0]
    text = run("ingest", "--store", STORE, "-", "--json", stdin=b"Piped in.").json()
    assert text["tokens"] == len("Piped in.")
    lines_in = b'{"text": "Row one."}\n{"text": "Row two."}\n'
    arguments = ["--stdin-format", "jsonl", "--source", "piped", "--json"]
    assert counts(run("ingest", "--store", STORE, "-", *arguments, stdin=lines_in).json())[0] == 2
    assert set(documents(STORE)) == {
        "zipped/n1",
        "table/n2",
        "law/deep/c.txt",
        "stdin/stdin",
        "piped/stdin#1",
        "piped/stdin#2",
    }


def test_settings_of_a_new_datastore_are_kept_by_the_next_run(corpus: Path) -> None:
    chosen = ["--window", 64, "--key-module", "lm_head_input", "--storage", "int8"]
    run("ingest", "--store", STORE, corpus / "a.txt", *chosen)
    again = run("ingest", "--store", STORE, corpus, "--batch-size", 4, "--json").json()
    assert counts(again) == [2, 0, 1, 0]
    facts = run("info", STORE, "--json").json()
    assert [facts[name] for name in ("window", "key", "storage")] == [64, "lm_head_input", "int8"]
    assert counts(run("ingest", "--store", STORE, corpus, *chosen, "--json").json())[2] == 3


def test_a_document_that_another_writer_has(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named and left to the other; the exit code has a Job run again, the rest is done."""
    monkeypatch.setattr(intents, "PATIENCE", 0.1)
    assert run("ingest", "--store", STORE, corpus).code == 0
    (corpus / "a.txt").write_text("Mine.")
    (corpus / "b.md").write_text("Also changed.")
    with Datastore.open(STORE) as store:
        theirs = Catalog(store.backend)
        known = theirs.get("law/a.txt")
        assert known is not None
        theirs.begin_writing()
        version = theirs.new_version("law/a.txt", "other text", 3, 3)
        assert not theirs.claim([Change(replace(known, version=version))])
        done = run("ingest", "--store", STORE, corpus, "--json")
        theirs.end_writing()
    assert done.code == 1
    assert counts(json.loads(done.out)) == [0, 1, 1, 1]
    assert json.loads(done.out)["refused"] == 1
    assert "failed: law/a.txt: Another process is writing this document" in done.err
    again = run("ingest", "--store", STORE, corpus, "--json").json()
    assert counts(again) == [0, 1, 2, 0]
