"""Processes that ingest into one datastore at the same time: nothing is lost, nothing is double."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from knnlm_store.comparing import digest_of
from knnlm_store.datastore import Datastore
from tests.cli_support import finish, run, spawn, write_corpus
from tests.faults_servers import EngineProcess, running
from tests.ingest_support import assert_whole, document
from tests.milvus_support import milvus_root, own_server
from tests.rivals import LATE, MINE, OLD, ROUNDS, SERVED, THEIRS, TIMES

__all__ = ["milvus_root", "own_server"]

Told: TypeAlias = dict[str, Any]
"""What a round told."""
KEPT = "Another process is writing this document; ingest it again afterwards."


def told_by(model: Path, root: str) -> list[Told]:
    """What each round told, of all at one place."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.rivals", model, root],
        cwd=Path(__file__).parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def rounds(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Told]]:
    """What each round in a folder told, by its kind."""
    told = told_by(saved_model, f"faiss:{tmp_path_factory.mktemp('rivals')}")
    return {name: [t for t in told if t["round"] == name] for name in ROUNDS}


def opened(told: list[Told]) -> Iterator[tuple[Told, Datastore]]:
    assert len(told) == TIMES
    for each in told:
        with Datastore.open(each["uri"]) as store:
            yield each, store


def digests(store: Datastore) -> dict[str, str]:
    return {d.name: d.version.digest for d in store.documents()}


def of(*texts: Mapping[str, str]) -> dict[str, str]:
    """Digests of texts by name, of later texts if a name comes twice."""
    return {n: digest_of(document(n, text)) for each in texts for n, text in each.items()}


def kept_from(report: Told) -> set[str]:
    """Names of the documents that a process left to the other one."""
    assert report["documents"]["failed"] == len(report["problems"])
    assert all(p["what"] == KEPT for p in report["problems"])
    return {p["where"].removeprefix("s/") for p in report["problems"]}


def changed(report: Told) -> int:
    return int(report["documents"]["added"] + report["documents"]["replaced"])


def assert_all_added(told: Told, given: Sequence[Mapping[str, str]]) -> None:
    """Each process added all that it was given."""
    for report, texts in zip(told["reports"], given, strict=True):
        assert report["documents"]["added"] == len(texts)
        assert report["tokens"] == sum(map(len, texts.values()))
        assert (report["problems"], report["mended"]) == ([], 0)


def assert_shared(told: Told, texts: Mapping[str, str]) -> None:
    """Each document was written or found by either process."""
    for report in told["reports"]:
        assert kept_from(report) == set()
        assert changed(report) + report["documents"]["skipped"] == len(texts)


def test_different_documents(rounds: dict[str, list[Told]]) -> None:
    for told, store in opened(rounds["different"]):
        assert_whole(store)
        assert digests(store) == of(OLD, *ROUNDS["different"])
        assert_all_added(told, ROUNDS["different"])


def test_the_same_documents(rounds: dict[str, list[Told]]) -> None:
    """One copy of each, whoever wrote it."""
    for told, store in opened(rounds["same"]):
        assert_whole(store)
        assert digests(store) == of(OLD, MINE)
        assert store.backend.count() == sum(map(len, MINE.values()))
        assert_shared(told, MINE)


def test_different_texts_of_the_same_documents(rounds: dict[str, list[Told]]) -> None:
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
def test_one_of_two_is_killed(rounds: dict[str, list[Told]], what: str) -> None:
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


# -- on a server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Place of Qdrant's engine as a server of its own."""
    key = "of-the-rivals"
    with (
        running(EngineProcess(tmp_path_factory.mktemp("engine"), key)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KNNLM_QDRANT_API_KEY", key)
        yield server.address


@pytest.fixture(
    scope="module", params=[("qdrant", "engine_root"), ("milvus", "milvus_root")], ids=str
)
def served(request: pytest.FixtureRequest, saved_model: Path) -> Iterator[dict[str, Told]]:
    """What each round on a server told, by its kind."""
    scheme, root = request.param
    told = told_by(saved_model, f"{scheme}://{request.getfixturevalue(root)}")
    yield {each["round"]: each for each in told}
    with Datastore.open(told[0]["uri"]) as store:
        store.backend.drop()


def test_on_a_server_all_is_there_once(served: dict[str, Told]) -> None:
    (uri,) = {told["uri"] for told in served.values()}
    with Datastore.open(uri) as store:
        assert_whole(store)
        assert digests(store) == of(*SERVED["different"], MINE, LATE)


def test_two_processes_make_one_datastore_on_a_server(served: dict[str, Told]) -> None:
    """Neither finds one, both go on in the same."""
    told = served["different"]
    assert [report["found"] for report in told["reports"]] == [False, False]
    assert_all_added(told, SERVED["different"])


def test_the_same_documents_on_a_server(served: dict[str, Told]) -> None:
    assert_shared(served["same"], MINE)
    assert [report["mended"] for report in served["same"]["reports"]] == [0, 0]


def test_one_of_two_is_killed_on_a_server(served: dict[str, Told]) -> None:
    """The other one finishes, and a third run finds nothing to do but to mend."""
    told = served["killed_same"]
    (survivor,) = (report for report in told["reports"] if report is not None)
    assert kept_from(survivor) == kept_from(told["last"]) == set()
    assert changed(survivor) + survivor["documents"]["skipped"] == len(LATE)
    assert told["last"]["documents"]["skipped"] == len(LATE)


# -- two commands ----------------------------------------------------------------------------------


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
