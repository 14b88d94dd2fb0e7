"""Small JSON files that are replaced whole, copies that keep holes, and space on the disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knnlm_store_qdrant.engine.refusal import WAL_FULL, failed

_HOLE = bytes(1 << 20)


def write_json(path: Path, value: Any) -> None:
    """Replace the file durably: after a crash it holds the old value or the new one."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def read_json(path: Path) -> Any:
    """Read a file of `write_json`; raises OSError, ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; zeros become holes, since the engine allocates far ahead."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            copy_tree(entry, target / entry.name)
        else:
            _copy(entry, target / entry.name)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(len(_HOLE)):
            if chunk == _HOLE[: len(chunk)]:
                writer.seek(len(chunk), os.SEEK_CUR)
            else:
                writer.write(chunk)
        writer.truncate()


def size_of(folder: Path) -> int:
    """Count the bytes that the files of a folder take on disk."""
    return sum(path.stat().st_blocks for path in folder.rglob("*")) * 512


@dataclass(frozen=True, slots=True)
class Space:
    """The disk under `folder`, of which `reserve` bytes are left alone.

    The engine writes through memory maps, where a full disk ends the process: ask before.
    """

    folder: Path
    reserve: int

    def check(self, extra: int) -> None:
        """Raise Refused unless `extra` bytes fit."""
        self.require(self.reserve + extra)

    def require(self, size: int) -> None:
        """Raise Refused unless so many bytes are free, those of the reserve among them."""
        if shutil.disk_usage(self.folder).free < size:
            raise failed(WAL_FULL)
