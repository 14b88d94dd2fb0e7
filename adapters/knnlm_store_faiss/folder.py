"""Making and removing a datastore's folder, each in one atomic step."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from knnlm_store.errors import StoreExists, UsageError
from knnlm_store.values import Location, Spec
from knnlm_store_faiss.datafiles import DataFile, is_ours, sync_folder
from knnlm_store_faiss.failures import DATABASE, absent
from knnlm_store_faiss.ledger import Ledger

_ABANDONED = 3600.0  # seconds after which an unfinished folder is nobody's


def folder_of(location: Location) -> Path:
    """The folder of a datastore. Raises UsageError for a name that is no plain folder name."""
    name = location.name
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise UsageError(
            f"{name!r} cannot name a datastore.", hint="Take letters, digits, '-', '_' and '.'."
        )
    return Path(location.root or ".").absolute() / name


def identity(folder: Path) -> tuple[int, int]:
    """What tells the datastore in `folder` from a later one. Raises StoreNotFound."""
    try:
        found = (folder / DATABASE).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise absent(folder) from error
    return found.st_dev, found.st_ino


def names(root: Path) -> list[str]:
    """Names of the folders in `root` that hold a datastore, sorted."""
    if not root.is_dir():
        return []
    held = (path.parent.name for path in root.glob(f"*/{DATABASE}"))
    return sorted(name for name in held if not name.startswith("."))


def create(folder: Path, spec: Spec, records: Mapping[str, bytes]) -> None:
    """Make an empty datastore beside its place, and move it there; one of several succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    if folder.exists():
        _refuse_taken(folder)
    draft = _aside(folder)
    draft.mkdir()
    try:
        DataFile.keys(draft, 1, spec).create()
        DataFile.tokens(draft, 1).create()
        Ledger.create(draft, spec, records)
        sync_folder(draft)
        try:
            draft.rename(folder)  # takes the place of nothing, or of an empty folder
        except OSError:
            _refuse_taken(folder)
            raise
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def drop(folder: Path) -> None:
    """Remove a datastore; files that this adapter did not make stay."""
    files = list(folder.iterdir())
    if all(map(is_ours, files)):
        aside = _aside(folder)
        folder.rename(aside)
        shutil.rmtree(aside)
        return
    # The ledger goes first: without it there is no datastore.
    for path in sorted(filter(is_ours, files), key=lambda p: p.name != DATABASE):
        path.unlink()


def _refuse_taken(folder: Path) -> None:
    """Raise StoreExists if `folder` is a datastore or has foreign files."""
    if (folder / DATABASE).exists():
        raise StoreExists(
            f"There is a datastore at {folder} already.", hint="Use it, or take another name."
        )
    if not folder.is_dir():
        if folder.exists():
            raise StoreExists(f"{folder} is a file.", hint="Take another name.")
    elif any(folder.iterdir()):
        raise StoreExists(
            f"The folder {folder} has files and is no datastore.",
            hint="Take another name, or empty the folder.",
        )


def _aside(folder: Path) -> Path:
    """A free name beside `folder` that `names` passes over."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of making or dropping this datastore long ago."""
    for path in folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 32}"):
        with suppress(FileNotFoundError):  # another process is at it this moment
            if path.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
