"""Qdrant's engine, killed, silent, spoilt on the way, full; and what a user is told.

Faults of single calls are in test_qdrant_access.py and test_qdrant_garbled.py: deadlines, TLS,
every way to garble a reply. Here they befall whole commands.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from knnlm_store import fallback
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StorageFull
from knnlm_store.models import LanguageModel
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import acquire
from tests.cli_support import run, write_corpus
from tests.faults_commands import kept_secret
from tests.faults_servers import EngineProcess, Killable, Outages, fill, running, small_disk
from tests.faults_suite import FaultSuite
from tests.faults_support import (
    AFTER,
    BEFORE,
    assert_as,
    at_calls,
    continued,
    hasty,
    ingested,
    mixing,
    prompt,
    quiet_run,
)
from tests.proxies import Moods, http_proxy

KEY = "distinctive-key-5f2c9e"


@pytest.fixture(autouse=True)
def _no_secret(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    with kept_secret(TestFaults.key[1], caplog, capfd):
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with running(EngineProcess(tmp_path_factory.mktemp("engine"), KEY)) as server:
        yield server


@pytest.fixture
def engine(shared: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    """A server that runs, whose key the environment has."""
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", KEY)
    if not shared.is_running():
        shared.start()
    return shared


@pytest.fixture(scope="module")
def place(shared: EngineProcess) -> str:
    return f"qdrant://{shared.address}"


@pytest.fixture
def uri(engine: EngineProcess, place: str) -> str:
    """A datastore that is not there yet."""
    return f"{place}/law-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(engine: EngineProcess) -> Iterator[Moods]:
    with http_proxy(engine.address) as moods:
        yield moods


@pytest.fixture(scope="module")
def quiet(shared_model: LanguageModel) -> Datastore:
    return quiet_run(shared_model, BEFORE, AFTER)


@pytest.mark.usefixtures("engine")
class TestFaults(FaultSuite):
    scheme = "qdrant"
    key = ("KNNLM_QDRANT_API_KEY", KEY)
    timeout = ("KNNLM_QDRANT_TIMEOUT", "0.7")
    late = (
        r"Qdrant at {} did not answer in time\.",
        "Wait and run this again, or give it more seconds in KNNLM_QDRANT_TIMEOUT.",
    )
    silent = late
    refused = (
        r"Qdrant at {} refused the API key for this call\.",
        "Set KNNLM_QDRANT_API_KEY, or KNNLM_QDRANT_API_KEY_FILE, to a key that may do this.",
    )


# -- killed ----------------------------------------------------------------------------------------


class Embedded:
    """The engine that the adapter itself has started for a folder, and will start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kill(self) -> None:
        endpoint = acquire(self.folder)
        assert endpoint.pid is not None
        os.kill(endpoint.pid, signal.SIGKILL)
        endpoint.release()

    def start(self) -> None:
        pass


@pytest.fixture(params=["server", "folder"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Killable, str]:
    """An engine to kill, and a datastore in it that is not there yet."""
    if request.param == "folder":
        return Embedded(tmp_path / "engine"), f"qdrant:{tmp_path}/engine/law"
    return request.getfixturevalue("engine"), request.getfixturevalue("uri")


def test_killed_in_mid_ingest(
    victim: tuple[Killable, str],
    shared_model: LanguageModel,
    quiet: Datastore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice, while entries and records are written; the same call goes on, as if nothing were."""
    server, uri = victim
    ingested(shared_model, uri, BEFORE)
    hasty(monkeypatch)
    with Outages(server) as outages, pytest.MonkeyPatch.context() as patch:
        at_calls(patch, QdrantBackend, "_upsert", {3: outages.soon(0.003)})
        at_calls(patch, QdrantBackend, "delete_records", {2: outages.soon(0.0)})
        ingested(shared_model, uri, AFTER)
    assert_as(uri, quiet)


def test_killed_and_not_started_again(
    engine: EngineProcess,
    uri: str,
    saved_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command that has waited long enough says so; the same one, later, finishes the work."""
    hasty(monkeypatch, give_up_after=0.5)
    folder = write_corpus(tmp_path / "s", {f"{name}.txt": text for name, text in BEFORE.items()})
    command = ("ingest", "--model", saved_model, "--window", 32, "--storage", "float32", "--store")
    with pytest.MonkeyPatch.context() as patch:
        at_calls(patch, QdrantBackend, "_upsert", {4: engine.kill})
        told = run(*command, uri, folder).failure()
    hint = "Check that the server runs and that the address is right, then run this again."
    assert told == (1, f"Qdrant at {engine.address} cannot be reached.", hint)
    engine.start()
    again = run(*command, uri, folder, "--json").json()
    assert 0 < again["documents"]["added"] <= len(BEFORE)
    assert again["mended"] > 0
    quiet = f"faiss:{tmp_path}/quiet"
    assert run(*command, quiet, folder).code == 0
    with Datastore.open(quiet) as store:
        assert_as(uri, store)


def test_killed_while_decoding(
    engine: EngineProcess, uri: str, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mixture up to the kill, the plain model after it, the mixture again once it is back."""
    monkeypatch.setattr(fallback, "_COOL_DOWN", 0.3)
    ingested(language_model, uri, BEFORE)
    gone, back, end = 6, 14, 24

    def start() -> None:
        engine.start()
        time.sleep(1.0)

    with Datastore.open(uri) as store, mixing(language_model, store) as lm:
        tokens = prompt(lm)
        n = tokens.shape[1]
        whole = continued(lm, tokens, end)
        made = continued(lm, tokens, end, {gone: engine.kill, back: start})
        counters = lm.counters
        assert (counters.fallbacks, counters.failures, counters.opened) == (back - gone, 3, 1)
        assert counters.last_error == f"Qdrant at {engine.address} cannot be reached."
        again = continued(lm, made[:, : n + back], end - back)
        plain = continued(lm.off(), made[:, : n + gone], end - gone)
        assert torch.equal(made[:, : n + gone], whole[:, : n + gone])
        assert torch.equal(made[:, : n + back], plain[:, : n + back])
        assert torch.equal(made, again)
        assert not torch.equal(made, whole)
        assert not torch.equal(made, plain)


def test_killed_while_the_command_decodes(
    engine: EngineProcess, uri: str, proxy: Moods, saved_model: Path, tmp_path: Path
) -> None:
    folder = write_corpus(tmp_path / "s", {"a.txt": BEFORE["11"]})
    assert run("ingest", "--store", uri, "--model", saved_model, folder).code == 0
    searches = Counter[str]()

    def kill_after_three(path: str) -> str:
        searches["all"] += "/query/batch" in path
        if searches["all"] == 3 and engine.is_running():
            engine.kill()
        return "pass"

    proxy.mood = kill_after_three
    proxied = f"qdrant://{proxy.address}/{uri.rpartition('/')[2]}"
    command = ("generate", "--store", proxied, "--model", saved_model)
    done = run(*command, "--temperature", 1, "--max-new-tokens", 8, "The creditor")
    said = f"The connection to Qdrant at {proxy.address} broke."
    assert done.code == 0, done.err
    assert done.out.startswith("The creditor")
    assert done.err.splitlines() == [
        f"WARNING: {said} Until it answers, the plain model goes on alone.",
        f"5 of 8 steps fell back to the plain model: {said}",
    ]


# -- full ------------------------------------------------------------------------------------------


def test_full_disk(
    tmp_path: Path, shared_model: LanguageModel, quiet: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is written, and what was there is intact, also where the engine is killed."""
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", KEY)
    with small_disk(tmp_path, "400m") as disk, running(EngineProcess(disk / "q", KEY)) as engine:
        uri = f"qdrant://{engine.address}/law"
        ingested(shared_model, uri, BEFORE)
        ballast = fill(disk, leave=1 << 20)
        for killed in (False, True):  # a new process would need space to read, too
            if killed:
                engine.kill()
                engine.start()
            with pytest.raises(StorageFull) as caught:
                ingested(shared_model, uri, AFTER)
            assert str(caught.value) == f"No space is left for Qdrant at {engine.address}."
            assert caught.value.hint.startswith("Free some space there and run this again; what ")
            assert engine.is_running()
            if not killed:
                assert_as(uri, quiet_run(shared_model, BEFORE))
        ballast.unlink()
        assert_as(uri, quiet_run(shared_model, BEFORE))
        ingested(shared_model, uri, AFTER)
        assert_as(uri, quiet)
