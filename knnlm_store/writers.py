"""Who writes: a name for each writer, by which others tell whether it is still alive."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from functools import cache
from pathlib import Path

# A writer elsewhere renews its intents; one that has not for so many seconds is given up.
LEASE = 120.0
RENEW = 30.0

_serials = itertools.count()
_at_work: set[str] = set()  # writers of this process that may still write


def new_name() -> str:
    """Name a writer: machine and process namespace, process, its start, and a serial number."""
    return f"{_me()}:{next(_serials)}"


def begin_work(writer: str) -> None:
    """Have a writer of this process count as alive until `end_work`."""
    _at_work.add(writer)


def end_work(writer: str) -> None:
    """Leave whatever the writer did not finish to others."""
    _at_work.discard(writer)


def is_gone(writer: str, seen_at: float) -> bool:
    """Whether a writer will write no more.

    seen_at: when it last said that it is there (seconds since the epoch, by its own clock),
    which decides where its process cannot be looked up: on another machine, in another container.
    """
    process, _, _ = writer.rpartition(":")
    if process == _me():
        return writer not in _at_work
    place, _, pid = process.rpartition(":")[0].rpartition(":")
    if place != _place():
        return time.time() - seen_at > LEASE
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return True
    except PermissionError:
        pass
    return process.rpartition(":")[2] != _started(int(pid))


def _me() -> str:
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


@cache
def _place() -> str:
    """Where process ids mean the same: one boot of one machine, and one namespace of ids.

    The host's name does not do: containers share names, and a machine keeps its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{boot}.{namespace}"


def _started(pid: int) -> str:
    """When a process started, so that a reused pid is not mistaken for it.

    `-` if unknown, `dead` if it ended and only its parent has not noticed yet.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return "-"
    return "dead" if fields[0] in (b"Z", b"X") else fields[19].decode()
