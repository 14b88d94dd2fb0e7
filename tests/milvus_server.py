"""The real Milvus server, in a process group of its own.

`python -m tests.milvus_server FOLDER PORT` runs the last one that came as a wheel, 2.3.5. It
binds all interfaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

TOKEN = "root:Milvus"
"""The token that a new server with authorisation takes."""
_START = 120.0


class MilvusProcess:
    """A server on a folder; started, killed, and started again on the same port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.process: subprocess.Popen[str] | None = None

    @property
    def root(self) -> str:
        """Its place, as in a Location."""
        return f"localhost:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.milvus_server", str(self.folder), str(self.port)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError(f"Milvus did not start in {self.folder}.")
        self.port = int(line)

    def kill(self) -> None:
        """Kill it with all its children, as a power cut would."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def remove(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def started() -> MilvusProcess:
    """A new server in a new folder; waits while another is running, for a machine takes one."""
    for _ in range(5):
        folder = Path(tempfile.mkdtemp(prefix="knnlm-milvus-"))
        server = MilvusProcess(folder, 20000 + os.getpid() % 9000)
        try:
            server.start()
        except RuntimeError as error:
            print(error, file=sys.stderr)
            server.remove()
            time.sleep(10)
        else:
            return server
    raise RuntimeError("Milvus did not start; is another server running?")


def _config(port: int) -> Any:
    from milvus import MilvusServerConfig

    class Config(MilvusServerConfig):  # type: ignore[misc]
        def try_bind_port(self, port: int) -> socket.socket | None:
            """As the base class does, but a port that a killed server left is free."""
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held.bind(("", port))
                held.listen()
            except OSError:
                held.close()
                return None
            return held

    config = Config()
    for name, value in {
        "proxy_port": port,
        "authorization_enabled": True,
        # A server that was killed comes back once its lease is over.
        "common.session.ttl": 10,
        # Strong reads wait for a tick, loading and sealing for checks: small ones for small tests.
        "proxy.timeTickInterval": 20,
        "queryCoord.checkInterval": 100,
        "queryCoord.distPullInterval": 100,
    }.items():
        config.set(name, value)
    return config


def main(folder: str, port: str) -> None:
    """Run the server; prints its port when it is up."""
    from milvus import MilvusServer

    parent = os.getppid()
    server = MilvusServer(_config(int(port)), wait_for_started=False)
    server.set_base_dir(folder)
    server.start()
    _wait_until_healthy(server)
    print(server.listen_port, flush=True)
    while server.server_proc.poll() is None and os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)  # also if the tests were killed


def _wait_until_healthy(server: Any) -> None:
    """Return when the server says it is up; exit if it died, which its own wait overlooks."""
    health, end = f"http://127.0.0.1:{server.webservice_port}/healthz", time.monotonic() + _START
    while server.server_proc.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(health, timeout=10) as reply:
            if b"OK" in reply.read():
                time.sleep(1)
                return
        time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
