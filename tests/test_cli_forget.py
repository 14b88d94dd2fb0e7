"""`knnlm-store forget`, `documents`, `history` and `verify` as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from knnlm_store import intents
from knnlm_store.datastore import Datastore
from tests.cli_support import STORE, TEXTS, contents, documents, run, write_corpus
from tests.ingest_support import an_intent, dead_writer, some_entries

LAW = {f"law/{name}" for name in TEXTS}
TOKENS = {f"law/{name}": len(text) for name, text in TEXTS.items()}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    write_corpus(tmp_path / "law")
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "\\u001b[31mred", "text": "Rows come with tags.", "lang": "en"}\n'
        '{"id": "two", "text": "And with numbers.", "lang": "de"}\n'
    )
    assert run("ingest", "--store", STORE, "law").code == 0
    more = ("rows.jsonl", "--metadata-column", "lang", "--metadata", "kind=row")
    assert run("ingest", "--store", STORE, *more).code == 0
    return tmp_path


def test_a_document_by_its_id() -> None:
    done = run("forget", "--store", STORE, "law/a.txt", "--verify")
    assert done.code == 0
    assert done.out.splitlines() == [
        f"forgotten: 1 document, {TOKENS['law/a.txt']} entries",
        "verified: 0 entries by id, 0 by document, 0 in searches for 8 of their own keys, "
        "0 in the catalog",
    ]
    assert "Backups, snapshots" in done.err
    assert f"knnlm-store compact {STORE}" in done.err
    assert set(documents(STORE)) == LAW - {"law/a.txt"} | {"rows/\x1b[31mred", "rows/two"}


def test_by_what_was_said_at_ingest() -> None:
    command = ("forget", "--store", STORE, "--where", "source=rows", "--where", "lang=de")
    assert run(*command, "--dry-run", "--json").json()["documents"] == ["rows/two"]
    before = contents(STORE)
    refused = run(*command)
    assert refused.code == 1
    assert f"Forget 1 document of {STORE}? [y/N]: " in refused.err
    assert contents(STORE) == before
    report = run(*command, "--yes", "--verify", "--json").json()
    assert report["documents"] == ["rows/two"]
    assert report["proof"] == {
        "by_id": 0, "by_filter": 0, "by_search": 0, "records": 0, "keys": 8, "holds": True,
    }  # fmt: skip
    assert any("compact" in sentence for sentence in report["may_remain"])
    assert set(documents(STORE)) == LAW | {"rows/\x1b[31mred"}


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["law/A.txt"], 1, f"There is no document 'law/A.txt' in {STORE}.",
         "Did you mean law/a.txt or law/deep/c.txt? "
         f"See what there is: knnlm-store documents {STORE}"),
        (["law/a.txt", "nothing"], 1, f"There is no document 'nothing' in {STORE}.",
         f"See what there is: knnlm-store documents {STORE}"),
        ([], 2, "Name documents, or say which by --where, but not both.",
         "For example: knnlm-store forget law/a.txt --store STORE"),
        (["--where", "lang"], 2, "--where takes KEY=VALUE, not 'lang'.",
         "For example: --where source=law"),
        (["--where", "lang=fr"], 1, f"No document in {STORE} has lang=fr.",
         "The key 'lang' is there, with the values: 'de', 'en'. "
         f"See what there is: knnlm-store documents {STORE}"),
        (["--where", "land=de"], 1, f"No document in {STORE} has land=de.",
         "There is no metadata key 'land'; there are: 'kind', 'lang', 'source'. "
         f"See what there is: knnlm-store documents {STORE}"),
        (["--where", "source=law", "--where", "lang=de"], 1,
         f"No document in {STORE} has source=law, lang=de.",
         "Each of these is there, but not in one document. "
         f"See what there is: knnlm-store documents {STORE}"),
    ],
)  # fmt: skip
def test_what_cannot_be_forgotten(arguments: list[str], code: int, message: str, hint: str) -> None:
    before = contents(STORE)
    failed = run("forget", "--store", STORE, *arguments)
    assert failed.failure()[0] == code
    assert failed.failure()[1] == message
    assert failed.failure()[2] == hint
    assert contents(STORE) == before


def test_documents_are_listed() -> None:
    listed = run("documents", STORE, "--json").json()
    assert listed["found"] == 5
    by_id = {document["id"]: document for document in listed["documents"]}
    assert list(by_id) == sorted(by_id)
    assert by_id["law/a.txt"]["tokens"] == TOKENS["law/a.txt"]
    assert by_id["rows/two"]["metadata"] == {"kind": "row", "lang": "de"}
    assert by_id["law/a.txt"]["bytes"] == TOKENS["law/a.txt"]
    assert by_id["law/a.txt"]["earlier"] == []


def test_documents_are_searched_and_sorted() -> None:
    chosen = run("documents", STORE, "A.T", "--json").json()
    assert [d["id"] for d in chosen["documents"]] == ["law/a.txt"]
    where = run("documents", STORE, "--where", "source=law", "--sort", "tokens", "--limit", 2)
    lines = where.out.splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["law/a.txt", "law/b.md"]
    assert "3 documents, " in where.err
    newest = run("documents", STORE, "--sort", "time", "--json").json()["documents"]
    assert {d["source"] for d in newest[:2]} == {"rows"}
    code, message, _ = run("documents", STORE, "--sort", "size").failure()
    assert (code, message) == (2, "Documents are not sorted by 'size'.")


def test_why_no_document_is_listed() -> None:
    for pair, why in [
        ("land=de", "There is no metadata key 'land'; there are: 'kind', 'lang', 'source'."),
        ("lang=fr", "The key 'lang' is there, with the values: 'de', 'en'."),
    ]:
        done = run("documents", STORE, "--where", pair)
        assert (done.code, done.out) == (0, "")
        assert done.err.splitlines() == [why, "0 documents, 0 tokens"]
        assert run("documents", STORE, "--where", pair, "--json").json()["found"] == 0
    assert run("documents", STORE, "nothing", "--where", "lang=de").err == "0 documents, 0 tokens\n"


def test_hostile_names_stay_in_their_line() -> None:
    out = run("documents", STORE).out
    assert "\x1b" not in out
    assert "rows/\\x1b[31mred  kind=row  lang=en" in out
    assert "\x1b" not in run("forget", "--store", STORE, "rows/\x1b[31mred", "--dry-run").out


def test_history_of_runs_and_of_a_document(place: Path) -> None:
    (place / "law" / "a.txt").write_text("Changed.")
    assert run("ingest", "--store", STORE, "law").code == 0
    assert run("forget", "--store", STORE, "law/b.md").code == 0
    runs = run("history", STORE, "--json").json()["runs"]
    assert [each["what"] for each in runs] == ["ingest", "ingest", "ingest", "forget"]
    assert runs[2]["counts"] == {"replaced": 1, "entries": 8}
    lines = run("history", STORE, "--limit", 2).out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(f"forget  1 forgotten, {TOKENS['law/b.md']} entries (0 s)")
    versions = run("history", STORE, "--document", "law/a.txt", "--json").json()
    assert [each["tokens"] for each in versions["earlier"]] == [TOKENS["law/a.txt"]]
    assert versions["tokens"] == 8
    assert len(run("history", STORE, "--document", "law/a.txt").out.splitlines()) == 2
    code, message, _ = run("history", STORE, "--document", "law/b.md").failure()
    assert code == 1
    assert message.startswith(f"There is no document 'law/b.md' in {STORE}.")


def test_verify_looks_and_mends() -> None:
    well = run("verify", STORE)
    assert well.code == 0
    assert (
        well.out == f"5 documents, {sum(d.version.tokens for d in documents(STORE).values())} "
        "entries: all is well\n"
    )
    with Datastore.open(STORE) as store:
        width = store.manifest.key_dimension
        store.backend.upsert(some_entries(777, 3, width))
        intents.put(store.backend, [an_intent("s/half", 999, dead_writer())])
        number = documents(STORE)["law/a.txt"].version.number
        store.backend.delete([number])
    wrong = run("verify", STORE)
    assert wrong.code == 1
    assert "orphan: version 777, 3 entries of no document" in wrong.out
    assert f"damaged: law/a.txt, 0 of {TOKENS['law/a.txt']} entries" in wrong.out
    assert f"knnlm-store verify {STORE} --mend" in wrong.err
    assert "unfinished: s/half, 0 entries of a run that was ended; ingest it again\n" in wrong.out
    again = f"For that: knnlm-store ingest --store {STORE} --source s FOLDER\n"
    assert again in wrong.err
    mended = run("verify", STORE, "--mend", "--json")
    assert mended.code == 1  # a document has to be ingested again
    report = json.loads(mended.out)
    assert (report["whole"], report["mended"], report["again"]) == (False, 3, ["law/a.txt"])
    assert report["undone"] == ["s/half"]
    assert run("verify", STORE).code == 0
    assert run("ingest", "--store", STORE, "law", "--json").json()["documents"]["added"] == 1
    assert run("verify", STORE).code == 0


def test_claims_of_a_killed_run_go_with_the_same_command() -> None:
    with Datastore.open(STORE) as store:
        intents.put(store.backend, [replace(an_intent("law/x", 0, dead_writer()), writes=False)])
    assert run("forget", "--store", STORE, "--where", "source=x", "--dry-run").code == 1
    assert "unfinished: law/x" in run("verify", STORE).out
    assert run("forget", "--store", STORE, "--where", "source=x", "--yes").code == 1
    assert run("verify", STORE).code == 0


def test_what_was_mended_is_to_be_ingested_again() -> None:
    with Datastore.open(STORE) as store:
        store.backend.upsert(some_entries(999, 3, store.manifest.key_dimension))
        intents.put(store.backend, [an_intent("my notes/half", 999, dead_writer())])
    done = run("verify", STORE, "--mend")
    assert done.code == 0
    assert done.out.splitlines()[1:] == [
        "unfinished: my notes/half, 3 entries of a run that was ended; ingest it again",
        "mended: 1",
    ]
    command = f"knnlm-store ingest --store {STORE} --source 'my notes' FOLDER"
    assert done.err == f"For that: {command}\n"
