"""The parent's side: one engine process for each folder and process, shared and counted.

`acquire(PATH)` starts the process, or shares the one that runs; it ends when the last Endpoint is
released, when this process ends or dies, and keeps its port and key if it must be started again.
A child made by fork can go on using an Endpoint while its parent lives; it owns nothing.

Two kinds of locks: the guard is held for a moment, to find an engine and to count its users;
each engine has a lock of its own, held while it starts or ends. The guard is taken last.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from knnlm_store.errors import MissingDependency
from knnlm_store_qdrant.engine.unstarted import not_started

_KEY = "KNNLM_ENGINE_API_KEY"
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_END_SECONDS = 10.0

_registry: dict[Path, _Engine] = {}
_guard = threading.Lock()


class Endpoint:
    """Where to reach the engine that has a folder; `release` it when done.

    `url` changes if the engine had to be started again and its old port was taken.
    """

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._released = False

    @property
    def path(self) -> Path:
        """The folder, absolute; it exists once something was written."""
        return self._engine.path

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._engine.port}"

    @property
    def api_key(self) -> str:
        """What requests must carry in the header `api-key`. Not to be shown to anybody.

        QdrantClient warns of plain http if it is told by `api_key=`; `headers=` does as well.
        """
        return self._engine.api_key

    @property
    def pid(self) -> int | None:
        """The engine's process; None where a parent of this process started it."""
        return self._engine.pid

    def poll(self) -> int | None:
        """Tell the exit status of an engine that ended by itself, or None while it runs."""
        return self._engine.poll()

    def restart_if_dead(self) -> bool:
        """Start the engine again if it ended by itself; True if so.

        Call it when a request found nobody listening, then repeat the request: what was
        acknowledged is there. Raises what `acquire` raises.
        """
        with self._engine.lock:
            if self._released or self._engine.poll() is None:
                return False
            self._engine.start()
            return True

    def release(self) -> None:
        """Give the engine up; the last to do so ends it, with all flushed. Idempotent."""
        with self._engine.lock:
            if not self._released:
                self._released = True
                _leave(self._engine)


def acquire(path: str | os.PathLike[str]) -> Endpoint:
    """Give the endpoint of the engine that has the folder `path`, started if need be.

    Reading a folder that is not there finds nothing and does not make it. Raises
    MissingDependency, BackendUnavailable (another process has the folder, or the engine does not
    start), StoreNotWritable, StoreCorrupt.
    """
    place = Path(path).expanduser().resolve()
    with _guard:
        engine = _registry.setdefault(place, _Engine(place))
        engine.users += 1
    with engine.lock:
        try:
            if engine.poll() is not None:
                engine.start()
        except BaseException:
            _leave(engine)
            raise
        return Endpoint(engine)


def _leave(engine: _Engine) -> None:
    """Count a user out, under the engine's lock; the last one ends the process."""
    with _guard:
        engine.users -= 1
        last = engine.users == 0
    if last:
        engine.stop()  # while it is registered, so that who wants the folder waits for its end
    with _guard:
        if engine.users == 0 and _registry.get(engine.path) is engine:
            del _registry[engine.path]


class _Engine:
    """The process that has a folder. Methods are called under its lock, save `poll`."""

    def __init__(self, path: Path) -> None:
        self.path, self.port, self.users = path, 0, 0
        self.api_key = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None
        self._foreign = False
        self.lock = threading.RLock()

    def poll(self) -> int | None:
        """Tell the exit status; -1 if it never ran, None while it runs or belongs to a parent."""
        if self._foreign:
            return None
        process = self._process
        if process is None:
            return -1
        if process.poll() is None and _at_end(process):
            # killed: its sockets are closed, and in a moment it can be waited for
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
        return process.poll()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, where it was if that port is still free."""
        if importlib.util.find_spec("qdrant_edge") is None:
            raise MissingDependency.of("qdrant-edge-py", "qdrant")
        self._forget()
        said = self._launched(self.port)
        if self.port and said.get("kind") == "system" and "port" not in said:
            said = self._launched(0)
        if "port" not in said:
            self._forget()
            raise not_started(self.path, said)
        self.port = said["port"]

    def stop(self) -> None:
        """Close its lifeline and wait until all is flushed."""
        process = self._process
        if process is not None and not self._foreign:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._forget()

    def disown(self) -> None:
        """In a forked child: let go of what the parent must be able to close."""
        self.lock = threading.RLock()  # a thread that this process does not have may hold the old
        if self._process is not None:
            self._process.returncode = 0  # not this process's to wait for
        self._foreign = True
        self._forget()

    def _forget(self) -> None:
        for stream in self._streams():
            stream.close()
        self._process = self._messages = None

    def _streams(self) -> list[IO[bytes]]:
        process = self._process
        streams = [self._messages, *((process.stdin, process.stdout) if process else ())]
        return [stream for stream in streams if stream is not None]

    def _launched(self, port: int) -> dict[str, Any]:
        """Start a process and give back what it says, or what it died of."""
        self._forget()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        package = __name__.rpartition(".")[0]
        place = (str(self.path), "--port", str(port), "--lifeline")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", package, *place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=os.environ | {_KEY: self.api_key, "PYTHONPATH": _import_path()},
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        line = _first_line(self._process)
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            said = {"error": self._last_message(), "kind": "died"}
        if "port" not in said:
            self._process.kill()
            self._process.wait()
        return said

    def _last_message(self) -> str:
        """Read the last line of what the process wrote on stderr."""
        assert self._messages is not None
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """Read the line a process prints when it is ready; empty if it dies or takes too long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(_START_SECONDS) else b""


def _at_end(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a process that says no more than a line has closed its stdout."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return bool(selector.select(0))


def _import_path() -> str:
    """Have the child import what this process would, and nothing from where the user stands."""
    return os.pathsep.join(path for path in sys.path if path)


def _stop_all() -> None:
    with _guard:
        engines = list(_registry.values())
        _registry.clear()
    for engine in engines:
        with engine.lock:
            engine.stop()


def _disown_all() -> None:
    global _guard
    _guard = threading.Lock()
    for engine in list(_registry.values()):
        engine.disown()
    _registry.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_disown_all)
