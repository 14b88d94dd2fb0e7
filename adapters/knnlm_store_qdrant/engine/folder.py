"""Whose a folder is: ours by its marker, nobody's while it is empty, else another's.

The first write makes the marker before anything else, and the marker is the lock as well. In a
folder that has something but no marker nothing is made, changed or removed: it may be the storage
of a Qdrant server, or a file of Milvus Lite, whose layouts resemble this one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import IO

from knnlm_store_qdrant.engine.collection import ABOUT, FILES
from knnlm_store_qdrant.engine.refusal import Refused

MARKER = ".knnlm-store-engine"

_NOBODYS = {"lost+found"}  # which file systems put into their root
_FOLDER = re.compile(r"[a-z0-9-]{1,40}\.[0-9a-f]{12}")


class InUse(Refused):
    """Another process has the folder."""

    def __init__(self, folder: Path, process: str) -> None:
        super().__init__(503, f"{folder} is in use by process {process}.")


class Foreign(Refused):
    """The folder is another program's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            400, f"{folder} holds other files: it is not a folder of this engine's datastores."
        )


def is_ours(root: Path) -> bool:
    """Whether the folder has the marker; False if it is not there or empty. Raises Foreign."""
    if not root.exists():
        return False
    there = set(os.listdir(root))
    if MARKER not in there and there - _NOBODYS:
        raise Foreign(root)
    return MARKER in there


def locked(root: Path, owner: int) -> IO[str]:
    """Mark the folder as ours if need be, and lock it; raises InUse.

    owner: the process to name to others who want the folder.
    """
    lock = (root / MARKER).open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        process = lock.read() or "?"
        lock.close()
        raise InUse(root, process) from None
    lock.truncate(0)
    lock.write(str(owner))
    lock.flush()
    return lock


def new_name(collection: str) -> str:
    """Draw a name for a folder, with enough of the collection's to be recognised."""
    return f"{re.sub('[^a-z0-9]+', '-', collection.lower())[:40]}.{uuid.uuid4().hex[:12]}"


def whole(collections: Path) -> list[Path]:
    """List the folders of collections that are whole, in a folder that may not be there yet."""
    if not collections.exists():
        return []
    return [path for path in collections.iterdir() if (path / ABOUT).exists()]


def sweep(collections: Path) -> None:
    """Remove the folders of collections that a crash left half made or half dropped."""
    if collections.exists():
        for path in collections.iterdir():
            if _is_leftover(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_leftover(path: Path) -> bool:
    """Whether the folder has a name that we drew, and nothing but what a collection makes."""
    if not _FOLDER.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return all(FILES.fullmatch(name) or name == f"{ABOUT}.new" for name in os.listdir(path))
