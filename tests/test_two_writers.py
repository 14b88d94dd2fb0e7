"""Processes that ingest into one datastore at the same time: nothing is lost, nothing is double."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.datastore import Datastore
from knnlm_store.ingest import digest_of
from tests.cli_support import finish, run, spawn, write_corpus
from tests.ingest_support import assert_whole, document
from tests.rivals import MINE, OLD, ROUNDS, THEIRS, TIMES

KEPT = "Another process is writing this document; ingest it again afterwards."


@pytest.fixture(scope="module")
def rounds(
    saved_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What each round told, by its kind."""
    folder = tmp_path_factory.mktemp("rivals")
    printed = subprocess.run(
        [sys.executable, "-m", "tests.rivals", saved_model, folder],
        cwd=Path(__file__).parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    told = [json.loads(line) for line in printed.splitlines()]
    return {name: [t for t in told if t["round"] == name] for name in ROUNDS}


def opened(told: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Datastore]]:
    assert len(told) == TIMES
    for each in told:
        with Datastore.open(f"faiss:{each['folder']}") as store:
            yield each, store


def digests(store: Datastore) -> dict[str, str]:
    return {d.name: d.version.digest for d in store.documents()}


def of(*texts: dict[str, str]) -> dict[str, str]:
    """Digests of texts by name, of later texts if a name comes twice."""
    return {n: digest_of(document(n, text)) for each in texts for n, text in each.items()}


def kept_from(report: dict[str, Any]) -> set[str]:
    """Names of the documents that a process left to the other one."""
    assert report["documents"]["failed"] == len(report["problems"])
    assert all(p["what"] == KEPT for p in report["problems"])
    return {p["where"].removeprefix("s/") for p in report["problems"]}


def changed(report: dict[str, Any]) -> int:
    return int(report["documents"]["added"] + report["documents"]["replaced"])


def test_different_documents(rounds: dict[str, list[dict[str, Any]]]) -> None:
    for told, store in opened(rounds["different"]):
        assert_whole(store)
        first, second = ROUNDS["different"]
        assert digests(store) == of(OLD, dict(first), dict(second))
        for report, texts in zip(told["reports"], (first, second), strict=True):
            assert report["documents"]["added"] == len(texts)
            assert report["tokens"] == sum(map(len, texts.values()))
            assert (report["problems"], report["mended"]) == ([], 0)


def test_the_same_documents(rounds: dict[str, list[dict[str, Any]]]) -> None:
    """One copy of each, whoever wrote it."""
    for told, store in opened(rounds["same"]):
        assert_whole(store)
        assert digests(store) == of(OLD, MINE)
        assert store.backend.count() == sum(map(len, MINE.values()))
        for report in told["reports"]:
            assert kept_from(report) == set()
            assert changed(report) + report["documents"]["skipped"] == len(MINE)


def test_different_texts_of_the_same_documents(rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Each ends as one of the two, and who did not get to write it says so."""
    refused = replaced_in_turn = 0
    for told, store in opened(rounds["clash"]):
        assert_whole(store)
        found, mine, theirs = digests(store), of(MINE), of(THEIRS)
        not_mine, not_theirs = (kept_from(report) for report in told["reports"])
        for name in MINE:
            written = {mine[name]} if name not in not_mine else set()
            written |= {theirs[name]} if name not in not_theirs else set()
            # with little patience both may leave a document to each other
            assert found.get(name, "") in (written or {of(OLD).get(name, "")})
        for report in told["reports"]:
            assert changed(report) == len(MINE) - report["documents"]["failed"]
        refused += len(not_mine | not_theirs)
        replaced_in_turn += len(MINE) - len(not_mine | not_theirs)
    assert refused
    assert replaced_in_turn


@pytest.mark.parametrize("what", ["killed_same", "killed_clash"])
def test_one_of_two_is_killed(rounds: dict[str, list[dict[str, Any]]], what: str) -> None:
    """The other one goes on, and a third run ends with what it was given."""
    killed = 0
    for told, store in opened(rounds[what]):
        assert_whole(store)
        assert digests(store) == of(MINE)
        assert kept_from(told["last"]) == set()
        for report in told["reports"]:
            killed += report is None
            # two that want what the other has in hand wait until their patience ends
            assert report is None or not kept_from(report) or what == "killed_clash"
    assert killed >= TIMES / 2


def test_two_commands_at_once(
    tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them makes the datastore; a file of the same name is in both corpora."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    shared = {f"{i}.txt": f"Article {i} is the same in both. " * 6 for i in range(5)}
    here = write_corpus(tmp_path / "one" / "law", {**shared, "a.txt": "Only here. " * 9})
    there = write_corpus(tmp_path / "two" / "law", {**shared, "b.txt": "Only there. " * 9})
    store = "faiss:stores/law"
    processes = [
        spawn("ingest", "--store", store, corpus, "--window", 16, "--json")
        for corpus in (here, there)
    ]
    for process in processes:
        done = finish(process)
        assert done.code == 0, done.err
        assert json.loads(done.out)["documents"]["failed"] == 0
    with Datastore.open(store) as opened_:
        assert_whole(opened_)
        assert {d.name for d in opened_.documents()} == {*shared, "a.txt", "b.txt"}
    again = run("ingest", "--store", store, here, there, "--json").json()
    assert again["tokens"] == 0
