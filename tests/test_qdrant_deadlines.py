"""Servers that do not answer, or answer a byte at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from knnlm_store.errors import BackendUnavailable
from knnlm_store.values import Location
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.server import opened
from tests import qdrant_support as support
from tests.qdrant_front import Front
from tests.qdrant_support import Frugal, created, document

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of Qdrant."""
    for name in ("API_KEY", "API_KEY_FILE", "CA", "TIMEOUT"):
        monkeypatch.delenv(f"KNNLM_QDRANT_{name}", raising=False)
    return monkeypatch


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does as it pleases with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def say_nothing(connection: socket.socket) -> None:
    with connection:
        connection.recv(1000)
        time.sleep(5)


def drip(connection: socket.socket) -> None:
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            time.sleep(0.05)
            try:
                connection.sendall(b" ")
            except OSError:
                return


def drip_headers(connection: socket.socket) -> None:
    """Each byte in time, the whole never."""
    with connection, suppress(OSError):
        connection.recv(1000)
        for byte in b"HTTP/1.1 200 OK\r\nX-Patience: a virtue\r\n":
            connection.sendall(bytes([byte]))
            time.sleep(0.3)


def drip_notes(connection: socket.socket) -> None:
    """Replies that announce another, without end."""
    with connection, suppress(OSError):
        connection.recv(1000)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.05)


@pytest.mark.parametrize("behave", [say_nothing, drip, drip_headers, drip_notes])
def test_calls_end_in_time(
    bare: pytest.MonkeyPatch, behave: Callable[[socket.socket], None]
) -> None:
    bare.setenv("KNNLM_QDRANT_TIMEOUT", "0.4")
    with serving(behave) as root:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="did not answer in time") as caught:
            QdrantBackend.connect(Location("qdrant", root, "law", network=True))
        assert 0.3 < time.monotonic() - began < 2
        assert caught.value.retryable


def read_slowly(connection: socket.socket) -> None:
    """Take what is sent, a little now and then."""
    with connection, suppress(OSError):
        while connection.recv(1 << 14):
            time.sleep(0.2)


def test_writing_ends_in_time(bare: pytest.MonkeyPatch) -> None:
    """To a server that reads at its leisure."""
    bare.setenv("KNNLM_QDRANT_TIMEOUT", "1")
    with serving(read_slowly) as root:
        location = Location("qdrant", root, "law", network=True)
        store = QdrantBackend(location, opened(location))
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            store._entries.upsert(document(1, 200, 1000))
        assert 0.9 < time.monotonic() - began < 3
        store.close()


def test_a_search_has_a_deadline_of_its_own(store: Frugal, front: Front) -> None:
    created(store).upsert(document(1, 200))
    late = threading.Event()
    front.before = lambda asked: late.wait(3) or True
    began = time.monotonic()
    for queries in (document(1, 1).keys, document(1, 200).keys):  # of one request, of several
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            store.search(queries, 3, timeout=0.3)
    assert time.monotonic() - began < 2
    late.set()
    front.before = bool
    assert store.search(document(1, 200).keys[:1], 3, timeout=20).ids[0, 0] == 1
