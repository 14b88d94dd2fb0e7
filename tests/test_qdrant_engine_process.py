"""The embedded engine's process: killed, shared, orphaned, locked out; and what is on disk then."""

from __future__ import annotations

import os
import threading
import time
import warnings
from pathlib import Path

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException

from knnlm_store.errors import BackendUnavailable
from knnlm_store_qdrant.engine import Endpoint, acquire
from tests.qdrant_engine_support import (
    alone,
    client_of,
    clustered,
    create,
    files,
    gone,
    held,
    is_running,
    kill,
    opened,
    put,
    refusal,
    start,
)

# -- killed ------------------------------------------------------------------------------------


def upsert_until_it_dies(client: QdrantClient, keys: np.ndarray, first: int) -> int:
    """Write batches of ten; how many were acknowledged?"""
    for start_ in range(0, len(keys), 10):
        try:
            put(client, "x", keys[start_ : start_ + 10], first + start_)
        except ResponseHandlingException:
            return start_
    return len(keys)


def test_kill_in_mid_upsert_loses_nothing(tmp_path: Path) -> None:
    keys, whole = clustered(20_000, 1), 0
    with opened(tmp_path) as (endpoint, client):
        create(client, "x")
        for round_ in range(2):
            url = endpoint.url
            killer = threading.Timer(0.15 + 0.2 * round_, kill, (endpoint,))
            killer.start()
            acknowledged = upsert_until_it_dies(client, keys[whole:], whole)
            killer.join()
            assert 0 < acknowledged < len(keys) - whole
            assert endpoint.restart_if_dead()
            assert not endpoint.restart_if_dead()
            assert endpoint.url == url
            now = held(client, "x")
            # a batch that nobody heard of again may be there: all of it, part of it, or none
            assert set(range(whole + acknowledged)) <= set(now)
            assert set(now) <= set(range(whole + acknowledged + 10))
            put(client, "x", keys[whole : whole + acknowledged + 10], whole)  # the replay
            whole += acknowledged + 10
            assert sorted(held(client, "x")) == list(range(whole))
        (point,) = client.retrieve("x", [whole - 1], with_vectors=True)
        assert np.array_equal(np.asarray(point.vector, np.float32), keys[whole - 1])


def test_half_made_collections_are_swept(tmp_path: Path) -> None:
    """By whoever makes the next one; see test_qdrant_folders for what is left alone."""
    with opened(tmp_path) as (_, client):
        create(client, "x")
        create(client, "y")
    (about,) = (p for p in tmp_path.glob("collections/*/collection.json") if '"x"' in p.read_text())
    about.unlink()
    with opened(tmp_path) as (_, client):
        assert [each.name for each in client.get_collections().collections] == ["y"]
        assert len(files(tmp_path)) == 2
        create(client, "x")
        assert len(files(tmp_path)) == 2
        assert not about.parent.exists()


# -- shared, orphaned, locked ------------------------------------------------------------------


def test_one_process_serves_all_who_acquire(tmp_path: Path) -> None:
    one, two = acquire(tmp_path), acquire(tmp_path / "." / ".." / tmp_path.name)
    assert (one.pid, one.url, one.api_key) == (two.pid, two.url, two.api_key)
    pid = one.pid
    assert pid is not None
    one.release()
    one.release()
    assert two.poll() is None
    assert is_running(pid)
    two.release()
    assert not is_running(pid)
    assert not two.restart_if_dead()


def test_folder_that_does_not_start_stalls_no_other(tmp_path: Path) -> None:
    """Each has a lock of its own; one that hangs is waited for by those who want that one."""
    stuck = tmp_path / "stuck"
    with opened(stuck) as (_, client):
        create(client, "x")
    os.mkfifo(stuck / "aliases.json")  # whoever reads it waits for a writer
    got: list[Endpoint] = []
    waiting = [threading.Thread(target=lambda: got.append(acquire(stuck))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    try:
        time.sleep(1.5)
        began = time.monotonic()
        with opened(tmp_path / "other") as (endpoint, client):
            create(client, "y")
            kill(endpoint)
            assert endpoint.restart_if_dead()
        assert time.monotonic() - began < 30
        assert got == []
    finally:
        (stuck / "aliases.json").write_text("{}")
        for thread in waiting:
            thread.join()
    first, second = got
    assert first.pid == second.pid is not None
    first.release()
    assert second.poll() is None
    second.release()


def test_engine_that_ends_is_waited_for(tmp_path: Path) -> None:
    """Who wants the folder at that moment does not find it in use by this very process."""
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(4):
                acquire(tmp_path).release()
        except BackendUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    with opened(tmp_path) as (_, client):
        create(client, "x")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there"
    with opened(place) as (_, client):
        assert client.get_collections().collections == []
        assert client.get_aliases().aliases == []
        assert not client.collection_exists("x")
        assert not client.delete_collection("x")
        with refusal(404, "doesn't exist"):
            client.get_collection("x")
        assert not place.parent.exists()
        create(client, "x")
        assert client.collection_exists("x")
        assert place.exists()


def test_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, client):
        create(client, "x")
        began = time.monotonic()
        with alone(tmp_path) as (process, said):
            assert said["error"] == f"{tmp_path} is in use by process {os.getpid()}."
            assert process.wait(10) == 1
        assert time.monotonic() - began < 10
        script = (
            "try: acquire(sys.argv[1])\nexcept Exception as e: print(type(e).__name__, e, e.hint)"
        )
        printed, errors = start(script, tmp_path).communicate(timeout=60)
        assert printed.startswith(
            f"BackendUnavailable {tmp_path} is in use by process {os.getpid()}."
        )
        assert not errors
        assert client.collection_exists("x")


def test_folder_that_another_process_made_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "later"
    with opened(place) as (_, reader):
        assert reader.get_collections().collections == []
        with alone(place, "--port", "0") as (process, said):
            with httpx.Client(
                base_url=f"http://127.0.0.1:{said['port']}", trust_env=False
            ) as other:
                body = {"vectors": {"size": 2, "distance": "Euclid"}}
                assert other.put("/collections/x", json=body).status_code == 200
            with refusal(503, f"is in use by process {process.pid}."):
                reader.get_collections()
            process.terminate()
            assert process.wait(20) == 0
        assert reader.collection_exists("x")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "1 / 0"])
def test_engine_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    script = """
endpoint = acquire(sys.argv[1])
client = client_of(endpoint)
create(client, "x")
put(client, "x", clustered(5, 1))
client.close()
print(endpoint.pid, flush=True)
"""
    with start(script + end, tmp_path) as process:
        printed, _ = process.communicate(timeout=60)
        assert gone(int(printed))
    with opened(tmp_path) as (_, client):
        assert client.count("x").count == 5


def test_fork_may_use_the_engine_and_does_not_end_it(tmp_path: Path) -> None:
    with opened(tmp_path) as (endpoint, client):
        create(client, "x")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            child = os.fork()
        if not child:
            status = 1
            try:
                mine = client_of(endpoint)
                put(mine, "x", clustered(5, 1))
                status = 0 if mine.count("x").count == 5 and endpoint.poll() is None else 2
                endpoint.release()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert endpoint.poll() is None
        assert client.count("x").count == 5


# -- refused -----------------------------------------------------------------------------------


def test_engine_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qdrant_edge.py").write_text("raise SystemExit('no engine on this machine')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendUnavailable, match="no engine on this machine"):
        acquire(tmp_path / "x")


def test_full_disk_is_refused_before_it_is_full(tmp_path: Path) -> None:
    """The engine writes through memory maps, where a full disk would end the process."""
    body = {"vectors": {"size": 1, "distance": "Euclid"}}
    points = {"points": [{"id": 1, "vector": [1.0]}]}
    with (
        alone(tmp_path) as (first, said),
        httpx.Client(base_url=f"http://127.0.0.1:{said['port']}", trust_env=False) as http,
    ):
        assert http.put("/collections/x", json=body).status_code == 200
        first.terminate()
        assert first.wait(20) == 0
    with (
        alone(tmp_path, "--reserve", str(1 << 40)) as (_, said),
        httpx.Client(base_url=f"http://127.0.0.1:{said['port']}", trust_env=False) as http,
    ):
        for path, sent in (("/collections/y", body), ("/collections/x/points", points)):
            reply = http.put(path, json=sent)
            assert reply.status_code == 500
            assert "No space left on device" in reply.json()["status"]["error"]
        assert http.get("/collections").json()["result"]["collections"] == [{"name": "x"}]
        counted = http.post("/collections/x/points/count", json={}).json()["result"]
        assert counted == {"count": 0}


def test_sigterm_ends_what_is_in_work(tmp_path: Path) -> None:
    """A request that was taken is answered before the process ends."""
    with alone(tmp_path) as (process, said):
        client = QdrantClient(
            url=f"http://127.0.0.1:{said['port']}", trust_env=False, check_compatibility=False
        )
        create(client, "x", dimension=400)
        keys, done = clustered(3000, 1, 400), []
        writer = threading.Thread(
            target=lambda: done.append(upsert_until_it_dies(client, keys, 0)), daemon=True
        )
        writer.start()
        time.sleep(0.5)
        process.terminate()
        assert process.wait(20) == 0
        writer.join()
        client.close()
    with opened(tmp_path) as (_, again):
        assert again.count("x").count == done[0] > 0
