"""The deadline and the breaker between decoding and a datastore, without a model."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import traceback
from collections.abc import Iterator

import numpy as np
import pytest

from knnlm_store.cli.generate import generate
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, InvalidEntries, UsageError
from knnlm_store.fallback import TIMEOUT, Admission, Breaker, Guard, Outages
from knnlm_store.manifest import Manifest
from knnlm_store.values import Entries, Float32, Spec
from tests.cli_support import python
from tests.faulty import PLACE, Clock, Faulty, FaultyRemote, down, healthy

D, K, THREAD = 4, 3, "knnlm-store search"

ENDS = """
import sys, time
from knnlm_store.datastore import Datastore
from knnlm_store.fallback import Guard, Outages
from knnlm_store.manifest import Manifest
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Location, Spec
import numpy as np

class Hangs(MemoryBackend):
    remote = True

    def _search(self, *arguments):
        time.sleep(60)

backend = Hangs(Location("memory", "", "memory"))
backend.create(Spec(4), {})
manifest = Manifest("m", "a", {}, "float32", "t", "k", 4, 0, 8, "now")
with Datastore(Location("memory", "", "memory"), backend, manifest) as store:
    print(Guard(store, Outages(), timeout=0.1).search(np.zeros((1, 4), np.float32), 3))
"""


def opened(backend: Faulty, manifest: Manifest) -> Datastore:
    """A datastore of 50 random entries."""
    keys = np.random.default_rng(0).standard_normal((50, D)).astype(np.float32)
    backend.create(Spec(D), {})
    backend.upsert(Entries(keys, np.arange(50), np.full(50, 7), np.arange(50)))
    return Datastore(PLACE, backend, manifest)


@pytest.fixture
def local(memory_store: Datastore) -> Datastore:
    return opened(Faulty(PLACE), memory_store.manifest)


@pytest.fixture
def remote(memory_store: Datastore) -> Datastore:
    return opened(FaultyRemote(PLACE), memory_store.manifest)


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest) -> Datastore:
    made: Datastore = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What searches hang at; opened at the end, so that none outlives its test."""
    event = threading.Event()
    yield event
    event.set()
    wait_for_late_answers()


def faulty(store: Datastore) -> Faulty:
    assert isinstance(store.backend, Faulty)
    return store.backend


def queries(seed: int = 1, rows: int = 1) -> Float32:
    return np.random.default_rng(seed).standard_normal((rows, D)).astype(np.float32)


def hanging() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


def wait_for_late_answers() -> None:
    end = time.monotonic() + 30
    while hanging():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_answer_is_the_datastores(store: Datastore) -> None:
    found = Guard(store, Outages()).search(queries(rows=5), K)
    expected = store.search(queries(rows=5), K)
    assert found is not None
    np.testing.assert_array_equal(found.distances, expected.distances)
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_only_remote_backends_get_a_thread(local: Datastore, remote: Datastore) -> None:
    here = threading.current_thread().name
    for store, timeout, name in ((local, 2.0, here), (remote, 2.0, THREAD), (remote, None, here)):
        faulty(store).threads.clear()
        Guard(store, Outages(), timeout=timeout).search(queries(), K)
        assert faulty(store).threads == {name}


def test_the_backend_is_told_the_timeout(store: Datastore) -> None:
    """It grows with the rows above 16: a prompt's positions are one search."""
    guard = Guard(store, Outages(), timeout=3.0)
    for rows in (1, 16, 32):
        guard.search(queries(rows=rows), K)
    assert faulty(store).timeouts == [3.0, 3.0, 6.0]
    Guard(store, Outages(), timeout=None).search(queries(), K)
    assert faulty(store).timeouts[-1] is None


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_timeouts_that_cannot_be_right(local: Datastore, timeout: float) -> None:
    with pytest.raises(UsageError, match="must be above 0 seconds") as caught:
        Guard(local, Outages(), timeout=timeout)
    assert "None waits for ever" in caught.value.hint


def test_the_command_line_has_the_same_default() -> None:
    assert inspect.signature(generate).parameters["search_timeout"].default == TIMEOUT


def test_pauses_double_up_to_a_minute(store: Datastore) -> None:
    clock, outages = Clock(), Outages()
    guard = Guard(store, outages, clock=clock)
    faulty(store).fault = down
    for _ in range(10):
        assert guard.search(queries(), K) is None
    assert (outages.fallbacks, outages.failures, outages.opened) == (10, 3, 1)
    for pause in (5, 10, 20, 40, 60, 60):
        clock.now += pause - 0.1
        before = faulty(store).calls
        guard.search(queries(), K)
        assert faulty(store).calls == before
        clock.now += 0.1
        guard.search(queries(), K)
        guard.search(queries(), K)
        assert faulty(store).calls == before + 1
    assert outages.opened == 1  # one outage, however long


def test_an_answer_closes_the_breaker_for_good(store: Datastore) -> None:
    clock, outages = Clock(), Outages()
    guard = Guard(store, outages, clock=clock)
    faulty(store).fault = down
    for _ in range(3):
        guard.search(queries(), K)
    clock.now = 5
    faulty(store).fault = healthy
    assert guard.search(queries(), K) is not None
    faulty(store).fault = down
    for _ in range(3):  # three more are needed, and the pause is short again
        guard.search(queries(), K)
    assert (outages.failures, outages.opened) == (6, 2)
    clock.now = 10
    faulty(store).fault = healthy
    assert guard.search(queries(), K) is not None


def test_failures_must_come_in_a_row(store: Datastore) -> None:
    outages = Outages()
    guard = Guard(store, outages, clock=Clock())
    for _ in range(4):
        faulty(store).fault = down
        assert guard.search(queries(), K) is None
        assert guard.search(queries(), K) is None
        faulty(store).fault = healthy
        assert guard.search(queries(), K) is not None
    assert (outages.fallbacks, outages.failures, outages.opened) == (8, 8, 0)


def test_one_trial_at_a_time() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    assert [breaker.failed() for _ in range(4)] == [False, False, True, False]
    clock.now = 5
    assert breaker.admit() is Admission.TRIAL
    assert breaker.admit() is Admission.REFUSED
    clock.now = 10  # that trial ended in neither: another may follow
    assert breaker.admit() is Admission.TRIAL
    assert breaker.succeeded()
    assert breaker.admit() is Admission.CLOSED
    assert not breaker.succeeded()


def test_an_outage_is_logged_once(store: Datastore, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    guard = Guard(store, Outages(), clock=clock)
    faulty(store).fault = down
    for _ in range(100):
        clock.now += 1
        guard.search(queries(), K)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for clock.now, fault in ((900, healthy), (901, down)):
        faulty(store).fault = fault
        guard.search(queries(), K)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_calls_that_hang_do_not_pile_up(remote: Datastore, gate: threading.Event) -> None:
    clock, backend = Clock(), faulty(remote)
    guard = Guard(remote, Outages(), timeout=0.1, clock=clock)
    backend.fault = lambda call: gate.wait(60)
    started = time.monotonic()
    for _ in range(50):
        assert guard.search(queries(), K) is None
    assert hanging() == backend.calls == 1
    for _ in range(10):  # trials go on while earlier ones hang, up to a few
        clock.now += 60
        assert guard.search(queries(), K) is None
    assert hanging() == backend.calls == 4
    assert time.monotonic() - started < 10
    gate.set()
    wait_for_late_answers()
    clock.now += 60
    assert guard.search(queries(), K) is not None


def test_a_late_answer_reaches_nobody(remote: Datastore, gate: threading.Event) -> None:
    guard = Guard(remote, Outages(), timeout=0.5)
    faulty(remote).fault = lambda call: call == 1 and gate.wait(60)
    assert guard.search(queries(1), K) is None
    gate.set()
    wait_for_late_answers()
    found, expected = guard.search(queries(2), K), remote.search(queries(2), K)
    assert found is not None
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert (found.distances != remote.search(queries(1), K).distances).any()


def test_a_late_bug_is_logged(
    remote: Datastore, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(call: int) -> None:
        gate.wait(60)
        raise ZeroDivisionError

    faulty(remote).fault = bug
    assert Guard(remote, Outages(), timeout=0.1).search(queries(), K) is None
    gate.set()
    wait_for_late_answers()
    assert caplog.records[-1].levelno == logging.ERROR
    assert "ZeroDivisionError" in caplog.text


def test_a_late_error_without_fallback(remote: Datastore, gate: threading.Event) -> None:
    guard = Guard(remote, Outages(), timeout=0.1, fallback=False)
    faulty(remote).fault = lambda call: gate.wait(60)
    for _ in range(2):
        with pytest.raises(
            BackendUnavailable, match=r"^memory: did not answer within 0.1 s.$"
        ) as e:
            guard.search(queries(), K)
        assert "--search-timeout" in e.value.hint


def test_the_interpreter_ends_while_a_search_hangs() -> None:
    started = time.monotonic()
    ended = python(ENDS)
    assert (ended.code, ended.out) == (0, "None\n")
    assert time.monotonic() - started < 40


def test_bugs_raise_with_their_traceback(store: Datastore) -> None:
    def bug(call: int) -> None:
        raise ZeroDivisionError

    outages = Outages()
    faulty(store).fault = bug
    with pytest.raises(ZeroDivisionError) as caught:
        Guard(store, outages).search(queries(), K)
    assert "bug" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert outages == Outages()


def test_what_the_caller_did_wrong_raises(store: Datastore) -> None:
    outages = Outages()
    guard = Guard(store, outages)
    for wrong in (np.full((1, D), np.nan, np.float32), np.zeros((1, D + 1), np.float32)):
        with pytest.raises(InvalidEntries):
            guard.search(wrong, K)
    with pytest.raises(UsageError):
        guard.search(queries(), 0)
    assert outages == Outages()
