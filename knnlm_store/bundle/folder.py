"""The folder that a bundle is written into: hidden until it is whole, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm_store.bundle.listing import NAME
from knnlm_store.errors import StorageFull, StoreError, StoreExists, StoreNotWritable

_OURS = re.compile(rf"entries-\d+\.parquet|documents\.parquet|records\.parquet|{re.escape(NAME)}")
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def becoming(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write into, renamed to it at the end of the block.

    What a killed run left there is removed first, and what this one wrote if the block raises.
    Raises StoreExists if `folder` is there and not empty, StoreError if another process is
    writing it, StorageFull and StoreNotWritable.
    """
    folder = folder.absolute()
    hidden = folder.with_name(f".{folder.name}.export")
    with _told(folder):
        _require_free(folder)
        hidden.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(hidden, folder)
        try:
            _require_free(folder)  # by whoever had the lock before
            _clear(hidden)
            yield hidden
            os.fsync(lock)
            hidden.rename(folder)
            _sync(folder.parent)
        except BaseException:
            _clear(hidden)
            hidden.rmdir()
            raise
        finally:
            os.close(lock)


def _locked(hidden: Path, folder: Path) -> int:
    """Make the hidden folder, and lock it; the lock ends with the process."""
    while True:
        hidden.mkdir(exist_ok=True)
        lock = os.open(hidden, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreError(
                f"Another process is exporting to {folder}.", hint="Wait for it, or name another."
            ) from None
        if hidden.exists() and os.path.samestat(hidden.stat(), os.fstat(lock)):
            return lock
        os.close(lock)  # renamed by whoever had it before


def _require_free(folder: Path) -> None:
    """Raise StoreExists unless a folder can be renamed to this."""
    if folder.is_symlink() or folder.exists():
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            return
        raise StoreExists(
            f"{folder} exists already.", hint="Name another folder, or remove this one first."
        )


def _clear(hidden: Path) -> None:
    """Remove what an export wrote. Raises StoreExists if there is something else."""
    for path in hidden.iterdir():
        if not _OURS.fullmatch(path.name):
            raise StoreExists(f"{path} is no file of a bundle.", hint=f"Move {hidden} away.")
        path.unlink()


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raise what the file system says as a StoreError about a bundle."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        if error.errno in _FORBIDDEN:
            raise StoreNotWritable(
                f"This user has no permission to write {path}.", hint="Name another folder."
            ) from error
        if error.errno in _FULL:
            raise StorageFull(
                f"No space is left for {folder}.", hint="Free some space, or name another folder."
            ) from error
        raise StoreError(
            f"The file system failed on {path}: {error.strerror or error}.",
            hint="Check the disk and its file system.",
        ) from error
