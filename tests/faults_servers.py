"""Servers that can be killed, servers that say nothing, and disks that are full."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self
from unittest.mock import patch

import pytest

from tests.milvus_server import MilvusProcess


class Killable(Protocol):
    """A server that can die and come back where it was."""

    def kill(self) -> None: ...
    def start(self) -> None: ...


class EngineProcess:
    """Qdrant's engine as a server of its own on a folder; `key` is asked of every caller."""

    def __init__(self, folder: Path, key: str, *options: str) -> None:
        self.folder, self.port = folder, 0
        self._key, self._options = key, options
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        place = [str(self.folder), "--port", str(self.port), *self._options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "knnlm_store_qdrant.engine", *place],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"KNNLM_ENGINE_API_KEY": self._key},
        )
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running(server: EngineProcess) -> Iterator[EngineProcess]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def another_milvus() -> Iterator[MilvusProcess]:
    """A Milvus that may run beside others, for its etcd has ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="knnlm-milvus-"))
    clients, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    settings = folder / "etcd.yaml"
    settings.write_text(
        f"listen-client-urls: {clients}\nadvertise-client-urls: {clients}\n"
        f"listen-peer-urls: {peers}\ninitial-advertise-peer-urls: {peers}\n"
        f"initial-cluster: default={peers}\n"
    )
    server = MilvusProcess(folder, free_port())
    places = {"ETCD_CONFIG_PATH": str(settings), "ETCD_ENDPOINTS": clients.partition("//")[2]}
    with patch.dict(os.environ, places):
        try:
            server.start()
            yield server
        finally:
            server.remove()


@contextmanager
def silent() -> Iterator[str]:
    """A server, HOST:PORT, that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of so many bytes (`64m`), which ends with the block.

    Where that is refused, a test is skipped; in CI, which the variable CI tells, it fails.
    """
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        refused = f"mounting a small disk is refused: {done.stderr.decode().strip()}"
        if os.environ.get("CI"):
            pytest.fail(refused)
        pytest.skip(refused)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes of a disk free; gives the file to remove."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:  # or until none is left
        while (size := shutil.disk_usage(disk).free - leave) > 0:
            file.write(bytes(min(size, 1 << 20)))
    return ballast


class Outages:
    """Kills a server and starts it again, one outage at a time; use as a context manager."""

    def __init__(self, server: Killable, seconds: float = 0.3) -> None:
        self._server, self._seconds = server, seconds
        self._lock, self._threads = threading.Lock(), list[threading.Thread]()

    def soon(self, after: float) -> Callable[[], object]:
        """An outage that begins so many seconds later, while whoever asked for it goes on."""
        thread = threading.Thread(target=self._outage, args=(after,))
        self._threads.append(thread)
        return thread.start

    def _outage(self, after: float) -> None:
        time.sleep(after)
        with self._lock:
            self._server.kill()
            time.sleep(self._seconds)
            self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        begun = [thread for thread in self._threads if thread.ident is not None]
        for thread in begun:
            thread.join()
        assert kind is not None or len(begun) == len(self._threads), "an outage that never was"
