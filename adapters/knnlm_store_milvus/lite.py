"""Files of Milvus Lite, which one process holds open at a time.

The server of a file runs in threads of this process, for all objects that use the file; with the
last of them the file is closed, so that another process may have it.
"""

from __future__ import annotations

import fcntl
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

from knnlm_store.errors import BackendUnavailable, MissingDependency, StoreError

# Milvus Lite hangs up on a connection that idles and pings, as pymilvus has all do: it takes the
# third ping for an attack. Its server is a thread of this process, and needs no watching.
UNWATCHED = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.keepalive_permit_without_calls": 0}
"""Options of a channel to the server of a file."""

_lock = threading.RLock()
_users: Counter[Path] = Counter()
_writing: dict[Path, threading.RLock] = {}


def acquire(path: Path) -> str:
    """Open the file, or join those who have it open; gives the URI of its server."""
    try:
        from milvus_lite.server_manager import server_manager_instance as manager
    except ModuleNotFoundError as error:
        raise MissingDependency.of("milvus-lite", "milvus") from error
    with _lock:
        if path.exists() and not path.is_dir():
            raise StoreError(
                f"{path} is no file of this Milvus Lite.",
                hint="Take another path; files of versions before 3 cannot be read.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = manager.start_and_get_uri(str(path))
        if uri is None:
            raise _refusal(path)
        _users[path] += 1
        return str(uri)


def release(path: Path) -> None:
    """Leave the file; the last one closes it."""
    from milvus_lite.server_manager import server_manager_instance as manager

    with _lock:
        _users[path] -= 1
        if _users[path] <= 0:
            del _users[path]
            manager.release_server(str(path))


def write_lock(path: Path) -> threading.RLock:
    """The lock of all who write to the file: its server takes one writer at a time."""
    with _lock:
        return _writing.setdefault(path, threading.RLock())


def size_of(path: Path, collection: str) -> int:
    """Bytes of a collection's folder in the file."""
    files = (path / "collections" / collection).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _refusal(path: Path) -> StoreError:
    with suppress(OSError), (path / "LOCK").open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BackendUnavailable(
                f"{path} is in use by another process, and Milvus Lite serves one at a time.",
                hint="Wait until it has finished, or use a Milvus server for several.",
            )
    return StoreError(
        f"Milvus Lite cannot open {path}.", hint="Check that the folder is whole and writable."
    )
