"""The one place where errors of SQLite, the file system and FAISS become ours."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm_store.errors import (
    BackendUnavailable,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
)

DATABASE = "store.sqlite"

_RESTORE = "Restore the folder from a copy, or drop the datastore and ingest again."
_PERMIT = "Give this user permission to write the folder, or copy the datastore elsewhere."
_FREE = "Free some space and run it again; what was committed before is intact."

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def mapped(folder: Path) -> Iterator[None]:
    """Raise errors of the libraries below as a StoreError about the datastore in `folder`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(error, folder) from error
    except OSError as error:
        raise _of_system(error, folder) from error
    except RuntimeError as error:
        # FAISS throws every C++ exception as RuntimeError; others are bugs of ours.
        if not str(error).startswith("Error in"):
            raise
        raise StoreError(f"FAISS failed on {folder}: {error}") from error
    except MemoryError as error:
        raise StoreError(
            f"Memory does not suffice to work on {folder}.",
            hint="Search in smaller batches, or keep keys in fewer dimensions.",
        ) from error


def corrupt(path: Path, what: str) -> StoreCorrupt:
    """Make the error of a file that cannot be what was written."""
    return StoreCorrupt(f"{path} {what}.", hint=_RESTORE)


def absent(folder: Path) -> StoreNotFound:
    """Make the error of a datastore that is not there."""
    return StoreNotFound(
        f"There is no datastore at {folder}.", hint="Check the path, or ingest to create it."
    )


def _of_sqlite(error: sqlite3.Error, folder: Path) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    path = folder / DATABASE
    if code == sqlite3.SQLITE_READONLY_DBMOVED or not path.exists():
        return absent(folder)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BackendUnavailable(
            f"Another process has been writing to {folder} for too long.",
            hint="Wait until it has finished, then run this again.",
        )
    if primary == sqlite3.SQLITE_FULL:
        return StorageFull(f"No space is left for {folder}.", hint=_FREE)
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        # CANTOPEN also where the folder takes no journal.
        return StoreNotWritable(f"This user has no permission to write {folder}.", hint=_PERMIT)
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt(path, "is damaged")
    if primary == sqlite3.SQLITE_ERROR:
        return corrupt(path, f"lacks what a datastore holds ({error})")
    return StoreError(
        f"SQLite failed on {path}: {error}.", hint="Check the disk and its file system."
    )


def _of_system(error: OSError, folder: Path) -> StoreError:
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    if error.errno in _FORBIDDEN:
        return StoreNotWritable(f"This user has no permission on {path}.", hint=_PERMIT)
    if error.errno in _FULL:
        return StorageFull(f"No space is left for {folder}.", hint=_FREE)
    if isinstance(error, FileNotFoundError):
        lost = (folder / DATABASE).exists()
        return corrupt(path, "is missing") if lost else absent(folder)
    return StoreError(
        f"The file system failed on {path}: {error.strerror or error}.",
        hint="Check the disk and its file system.",
    )
