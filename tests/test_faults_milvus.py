"""A Milvus server, killed, silent, spoilt on the way; and what a user is told."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pymilvus import MilvusClient

from knnlm_store import fallback, registry
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend, connection, entries
from tests.cli_support import run
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
    made_exact,
    mixing,
    outcome_of,
    prompt,
    quiet_run,
    until,
)
from tests.ingest_support import corpus
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
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A small disk for the server; None where mounting one is refused."""
    with ExitStack() as mounted:
        disk = None
        with suppress(pytest.skip.Exception):
            disk = mounted.enter_context(small_disk(tmp_path_factory.mktemp("milvus"), "800m"))
        yield disk


@pytest.fixture(scope="module")
def server(disk: Path | None) -> Iterator[MilvusProcess]:
    """A server of its own, which asks for a password of ours."""
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", disk and str(disk))
            server = running.enter_context(another_milvus())
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


# -- no space --------------------------------------------------------------------------------------


def test_full_disk_of_a_server(
    server: MilvusProcess,
    disk: Path | None,
    uri: str,
    shared_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Milvus ends when it cannot seal; started with some space, it has all it acknowledged."""
    if disk is None:
        pytest.skip("mounting a small disk is refused")
    hasty(monkeypatch, give_up_after=0.2)
    made_exact(shared_model, uri)
    ingested(shared_model, uri, BEFORE)
    ballast = fill(disk, leave=2**16)
    with Datastore.open(uri) as store, suppress(BackendUnavailable):
        ingest(corpus(AFTER), shared_model, store)  # its log may have room for all of this
        assert isinstance(store.backend, MilvusBackend)
        store.backend._connected().flush(store.location.name)
    process = server.process
    assert process is not None
    until(lambda: process.poll() is not None, 60)
    assert_told(run("info", uri), TestFaults.gone, server.root)
    ballast.unlink()
    server.kill()
    server.start()
    until(lambda: outcome_of(lambda: Datastore.open(uri).close()) == "", 90)
    with Datastore.open(uri) as store:
        kept = {document.name: document.version for document in store.documents()}
        assert kept.keys() >= BEFORE.keys()
        assert all(store.backend.count([v.number]) == v.tokens for v in kept.values())
    ingested(shared_model, uri, AFTER)
    assert_as(uri, quiet_run(shared_model, BEFORE, AFTER))
