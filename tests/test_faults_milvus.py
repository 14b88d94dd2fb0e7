"""A Milvus server, killed, silent, spoilt on the way; and what a user is told."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pymilvus import MilvusClient

from knnlm_store import fallback, registry
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, StorageFull
from knnlm_store.generation import KnnLM
from knnlm_store.models import LanguageModel, load
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend, connection, entries
from tests.cli_support import python, run
from tests.faults_commands import assert_told, kept_secret
from tests.faults_servers import another_milvus, fill, small_disk
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
    until,
)
from tests.ingest_support import held
from tests.milvus_server import TOKEN, MilvusProcess
from tests.milvus_support import created, keys, of_keys
from tests.proxies import FALSE, Moods, grpc_proxy
from tests.qdrant_front import certificate

PASSWORD = "Distinctive-5f2c9e"


@pytest.fixture(autouse=True)
def _no_secret(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    with kept_secret(TestFaults.key[1], caplog, capfd):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[MilvusProcess]:
    """A server of its own, which asks for a password of ours."""
    with another_milvus() as server:
        client = MilvusClient(f"http://{server.root}", token=TOKEN, timeout=30)
        user, _, password = TOKEN.partition(":")
        client.update_password(user, password, PASSWORD)
        client.close()
        yield server


@pytest.fixture(scope="module")
def place(server: MilvusProcess) -> str:
    return f"milvus://{server.root}"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", f"root:{PASSWORD}")


@pytest.fixture
def uri(place: str, token: None) -> str:
    """A datastore that is not there yet."""
    return f"{place}/law_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(server: MilvusProcess) -> Iterator[Moods]:
    with grpc_proxy(server.root) as moods:
        yield moods


@pytest.mark.usefixtures("token")
class TestFaults(FaultSuite):
    scheme = "milvus"
    key = ("KNNLM_MILVUS_TOKEN", f"root:{PASSWORD}")
    timeout = ("KNNLM_MILVUS_TIMEOUT", "2")
    late = (
        r"Milvus at {} did not answer in time \(.*\).",
        "Try again, or raise KNNLM_MILVUS_TIMEOUT, which is in seconds.",
    )
    silent = (
        r"Milvus at {} is not reachable, or refuses the token \(.*\)\.",
        "Check that it runs, with TLS if the URI is milvuss://, and KNNLM_MILVUS_TOKEN.",
    )
    gone = silent
    refused = silent
    rounds = 2
    spoiling: ClassVar = {
        "transient": (("cut", "late", "refuse"), 0.08),  # not "hang", which costs seconds here
        "false": (FALSE, 0.05),
    }
    reads = 60
    group_seconds = 0.3


def test_scans_are_whole_over_several_segments(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After deletions, replacements and seals, in pages of any size."""
    store = created(registry.parse(uri))
    chance, held = np.random.default_rng(0), dict[int, int]()
    numbers = [int(number) for number in chance.integers(1, 2**62, 12)]
    for step in range(18):
        number = numbers[chance.integers(len(numbers))]
        if step % 4 == 3:
            store.delete([number])
            held.pop(number, None)
        else:
            held[number] = max(int(chance.integers(1, 300)), held.get(number, 0))
            store.upsert(of_keys(keys(held[number], step), number))
        if step % 6 == 5:
            store._connected().flush(store._opened().entries.name)
    expected = sorted(number + i for number, count in held.items() for i in range(count))
    for page in (64, 4096):
        monkeypatch.setattr(connection, "PAGE", page)
        monkeypatch.setattr(entries, "PAGE", page)
        assert [i for batch in store.scan() for i in batch.ids.tolist()] == expected
    assert store.count() == len(expected)
    store.close()


# -- TLS -------------------------------------------------------------------------------------------


def test_certificates(
    server: MilvusProcess, token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is trusted serves; of others it is said, and that trying again is no use."""
    ours, theirs = certificate(tmp_path, "ours"), certificate(tmp_path, "theirs")
    where = Location("milvuss", "", f"law_{uuid.uuid4().hex[:8]}", network=True)
    with grpc_proxy(server.root, ours) as secure, grpc_proxy(server.root) as plain:
        there, no_tls = replace(where, root=secure.address), replace(where, root=plain.address)
        monkeypatch.setenv("KNNLM_MILVUS_CA", str(ours[0]))
        store = MilvusBackend.connect(there)
        assert not store.exists()
        store.close()
        with pytest.raises(BackendUnavailable, match="does not speak TLS as expected") as caught:
            MilvusBackend.connect(no_tls)
        assert not caught.value.retryable
        for authority in (str(theirs[0]), ""):
            monkeypatch.setenv("KNNLM_MILVUS_CA", authority)
            told = run("info", there).failure()
            hint = "Name the file of the authority that signed it in KNNLM_MILVUS_CA."
            said = f"The certificate of Milvus at {secure.address} is not trusted: "
            assert (told[0], told[1].startswith(said), told[2]) == (1, True, hint), told


# -- killed ----------------------------------------------------------------------------------------


def test_killed_in_mid_ingest_and_while_decoding(
    server: MilvusProcess,
    uri: str,
    shared_model: LanguageModel,
    language_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One outage: the ingest waits and goes on, decoding does not wait, and mixes again after."""
    monkeypatch.setattr(fallback, "_COOL_DOWN", 0.5)
    ingested(shared_model, uri, BEFORE)
    hasty(monkeypatch, group_seconds=0.3)
    killed = threading.Event()

    def kill() -> None:
        server.kill()
        killed.set()

    with (
        Datastore.open(uri) as store,
        mixing(language_model, store) as lm,
        ThreadPoolExecutor(1) as pool,
        pytest.MonkeyPatch.context() as patch,
    ):
        tokens, works = prompt(lm), []
        n, gone = tokens.shape[1], 6

        def begin() -> None:
            at_calls(patch, MilvusBackend, "_upsert", {3: kill})
            works.append(pool.submit(ingested, shared_model, uri, AFTER))
            assert killed.wait(60)

        whole = continued(lm, tokens, 16)
        made = continued(lm, tokens, 16, {gone: begin})
        assert torch.equal(made[:, : n + gone], whole[:, : n + gone])
        assert torch.equal(continued(lm.off(), made[:, : n + gone], 16 - gone), made)
        counters = lm.on().counters
        assert (counters.fallbacks, counters.opened) == (16 - gone, 1)
        assert counters.last_error is not None
        assert counters.last_error.startswith(f"Milvus at {server.root} is not reachable")
        assert_told(run("info", uri), TestFaults.gone, server.root)
        server.start()
        works[0].result(timeout=200)
        until(lambda: _mixes(lm, tokens), 30)
    assert_as(uri, quiet_run(shared_model, BEFORE, AFTER))


def _mixes(lm: KnnLM, tokens: torch.Tensor) -> bool:
    before = lm.counters.mixed
    continued(lm, tokens, 1)
    return lm.counters.mixed > before


# -- Milvus Lite -----------------------------------------------------------------------------------


# of a file that Milvus Lite cannot close then
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_full_disk(tmp_path: Path, shared_model: LanguageModel) -> None:
    """Nothing that was committed is lost, and it goes on once there is space."""
    with small_disk(tmp_path, "16m") as disk:
        uri = f"milvus:{disk}/file.db/law"
        ingested(shared_model, uri, BEFORE)
        ballast = fill(disk, leave=4096)
        with pytest.raises(StorageFull) as caught:
            ingested(shared_model, uri, AFTER)
        said = f"Milvus at {disk}/file.db has no room left ([Errno 28] No space left on device)."
        assert str(caught.value) == said
        assert caught.value.hint == "Free some space or raise its quota, then run this again."
        ballast.unlink()
        with Datastore.open(uri) as store:
            assert np.isin(held(quiet_run(shared_model, BEFORE)).ids, held(store).ids).all()
        ingested(shared_model, uri, AFTER)
        assert_as(uri, quiet_run(shared_model, BEFORE, AFTER))


KILLED = """
import os, signal, sys
import pytest
from knnlm_store.generation import KnnLM
from knnlm_store.models import load
from knnlm_store_milvus import MilvusBackend
from tests.faults_support import AFTER, at_calls, hasty, ingested
patcher = pytest.MonkeyPatch()
hasty(patcher)
at_calls(patcher, MilvusBackend, "_upsert", {4: lambda: os.kill(os.getpid(), signal.SIGKILL)})
ingested(load(sys.argv[1], window=32), sys.argv[2], AFTER)
"""


def test_killed_while_it_writes_to_a_file(tmp_path: Path, saved_model: Path) -> None:
    """The server of a file dies with the process; the next one finds the file whole and goes on."""
    uri, lm = f"milvus:{tmp_path}/file.db/law", load(str(saved_model), window=32)
    ingested(lm, uri, BEFORE)
    root = Path(__file__).parent.parent
    assert python(KILLED, saved_model, uri, cwd=root).code == -signal.SIGKILL
    ingested(lm, uri, AFTER)
    assert_as(uri, quiet_run(lm, BEFORE, AFTER))
