"""Names of writers, and which of them still live: in this process, beside it, elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store import intents, writer, writers
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change
from knnlm_store.errors import StoreError
from knnlm_store.memory import MemoryBackend
from knnlm_store.writer import DocumentWriter
from knnlm_store.writers import LEASE, RENEW, is_gone
from tests.ingest_support import an_intent, bare, dead_writer, record, some_entries

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="start times are read from /proc"
)
ELSEWHERE = "elsewhere.boot.4:1:1:0"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def named(process: subprocess.Popen[bytes], started: str | None = None) -> str:
    when = started or Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{writers._place()}:{process.pid}:{when}:0"


# -- in this process -----------------------------------------------------------------------------


def test_no_two_writers_share_a_name() -> None:
    names = [writers.new_name() for _ in range(3)]
    command = "from knnlm_store import writers; print(writers.new_name())"
    for _ in range(2):
        told = subprocess.run(
            [sys.executable, "-c", command], check=True, stdout=subprocess.PIPE, text=True
        )
        names.append(told.stdout.strip())
    assert len(set(names)) == 5


def test_a_writer_of_this_process_lives_while_it_is_at_work() -> None:
    name = writers.new_name()
    long_ago = time.time() - 10 * LEASE
    assert is_gone(name, time.time())
    writers.begin_work(name)
    assert not is_gone(name, long_ago)
    assert is_gone(writers.new_name(), time.time())
    writers.end_work(name)
    assert is_gone(name, time.time())


# -- in another process --------------------------------------------------------------------------


@needs_proc
def test_a_process_that_lives_and_dies(sleeper: subprocess.Popen[bytes]) -> None:
    """However long it was silent; and a zombie, whose parent did not wait for it, is dead."""
    name = named(sleeper)
    assert not is_gone(name, time.time() - 10 * LEASE)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while not is_gone(name, time.time()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{sleeper.pid}").exists()


def test_a_process_that_ended() -> None:
    assert is_gone(dead_writer(), time.time())


@needs_proc
def test_a_process_with_a_reused_pid_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    assert is_gone(named(sleeper, started="1"), time.time())


@needs_proc
@pytest.mark.parametrize("where", ["name", "boot", "namespace"])
def test_the_same_pid_elsewhere_says_nothing(sleeper: subprocess.Popen[bytes], where: str) -> None:
    """Containers share names of hosts and numbers of processes."""
    place, pid, started, serial = named(sleeper).rsplit(":", 3)
    name, boot, namespace = place.rsplit(".", 2)
    elsewhere = {
        "name": f"other.{boot}.{namespace}",
        "boot": f"{name}.other.{namespace}",
        "namespace": f"{name}.{boot}.1{namespace}",
    }
    writer_there = f"{elsewhere[where]}:{pid}:{started}:{serial}"
    sleeper.kill()
    sleeper.wait()
    assert is_gone(f"{place}:{pid}:{started}:{serial}", time.time())
    assert not is_gone(writer_there, time.time())


# -- elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ELSEWHERE, "", "no name", ":::", "elsewhere:x:1:0"])
def test_a_writer_that_cannot_be_looked_up_has_its_lease(name: str) -> None:
    assert not is_gone(name, time.time() - LEASE + 60)
    assert is_gone(name, time.time() - LEASE - 1)


@pytest.mark.parametrize("pid", ["x", "", "9" * 30, "-"])
def test_a_name_that_nobody_here_can_have(pid: str) -> None:
    assert is_gone(f"{writers._place()}:{pid}:1:0", time.time())


def test_a_lease_outlasts_what_may_pass_between_two_renewals() -> None:
    assert LEASE >= RENEW + 2 * intents.PATIENCE + 10


def recovered(backend: MemoryBackend) -> int:
    return Catalog(backend).recover()


def test_intents_elsewhere_stay_while_they_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bare([record("a", 100)])
    there = an_intent("s/a", 200, ELSEWHERE, at=time.time())
    backend.upsert(some_entries(200, 5))
    intents.put(backend, [there])
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for _ in range(4):  # longer than a lease, all in all
        clock[0] += LEASE / 2
        assert recovered(backend) == 0
        intents.renew(backend, [there])
    clock[0] += LEASE - 1
    assert recovered(backend) == 0
    clock[0] += 2
    assert recovered(backend) == 1
    assert list(intents.scan(backend)) == []
    assert backend.count() == 0


def test_a_slow_forward_pass_costs_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes to the writer for longer than a lease; its intents are renewed meanwhile."""
    monkeypatch.setattr(writer, "RENEW", 0.02)
    monkeypatch.setattr(writers, "LEASE", 0.3)
    backend = bare()
    known, change = Catalog(backend), Change(record("a", 100))
    with DocumentWriter(backend, known) as at_work:
        at_work.begin(change)
        at_work.put(some_entries(100, 5)[:3])
        seen = set()
        until = time.monotonic() + 3 * writers.LEASE
        while time.monotonic() < until:
            for intent in intents.scan(backend):
                # by the clock alone, as another machine would have to judge it
                assert not is_gone(ELSEWHERE, intent.at)
                seen.add(intent.at)
            time.sleep(0.01)
        at_work.put(some_entries(100, 5)[3:])
        at_work.done(change)
    assert len(seen) > 5
    assert [d.name for d in Catalog(backend)] == ["a"]
    assert list(intents.scan(backend)) == []


def test_a_writer_that_lost_its_lease_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that was asleep: others took the documents over, nothing is committed."""
    monkeypatch.setattr(writer, "RENEW", 0.02)
    backend = bare()
    with pytest.raises(StoreError, match="Another process took over 1 of the documents"):
        write_and_be_robbed(backend)
    assert list(Catalog(backend)) == []
    assert recovered(backend) == 1
    assert backend.count() == 0


def write_and_be_robbed(backend: MemoryBackend) -> None:
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        at_work.begin(Change(record("a", 100)))
        at_work.put(some_entries(100, 5))
        while not backend.count():
            time.sleep(0.005)
        backend.delete([100])
        intents.remove(backend, intents.scan(backend))
        until = time.monotonic() + 10
        while time.monotonic() < until:
            at_work.put(some_entries(100, 5))
            time.sleep(0.01)
