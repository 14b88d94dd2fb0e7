"""The append-only files: keys as they are stored, and tokens.

A file is a header of 64 bytes and rows of fixed size. Which rows count is not written here: the
ledger knows, and a tail beyond its count is what a killed writer left.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Float32, Spec
from knnlm_store_faiss.failures import corrupt

STORAGES = ("float16", "float32", "int8")
TOKEN = np.dtype("<u4")

_HEADER = struct.Struct("<8sQQ40x")  # magic, bytes a row, generation
_OURS = re.compile(r"(?:keys|tokens|index)\.(\d+)(\.new)?")


@dataclass(frozen=True, slots=True)
class Codec:
    """How keys of a Spec are laid out: one row a key."""

    spec: Spec

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of a row: `d` numbers, for int8 along with their scale."""
        width = (self.spec.dimension,)
        if self.spec.storage == "int8":
            return np.dtype([("scale", "<f4"), ("values", "i1", width)])
        return np.dtype([("values", "<f2" if self.spec.storage == "float16" else "<f4", width)])

    def encode(self, keys: Float32) -> NDArray[Any]:
        """Turn keys float32 `[n, d]` into rows `[n]`."""
        rows = np.empty(len(keys), self.dtype)
        if self.spec.storage == "int8":
            scale = np.abs(keys).max(axis=1) / np.float32(127)
            rows["scale"] = scale
            rows["values"] = np.rint(keys / np.where(scale > 0, scale, 1)[:, None])
            return rows
        rows["values"] = keys
        return rows

    def decode(self, rows: NDArray[Any]) -> Float32:
        """Turn rows, any shape, back into keys float32 `[..., d]`."""
        keys: Float32 = rows["values"].astype(np.float32)
        if self.spec.storage == "int8":
            keys *= rows["scale"][..., None]
        return keys


@dataclass(frozen=True, slots=True)
class DataFile:
    """One append-only file of a generation."""

    path: Path
    magic: bytes
    dtype: np.dtype[Any]
    generation: int

    @classmethod
    def keys(cls, folder: Path, generation: int, spec: Spec) -> DataFile:
        """The file of keys."""
        return cls(folder / f"keys.{generation}", b"KNNLMKEY", Codec(spec).dtype, generation)

    @classmethod
    def tokens(cls, folder: Path, generation: int) -> DataFile:
        """The file of tokens."""
        return cls(folder / f"tokens.{generation}", b"KNNLMTOK", TOKEN, generation)

    def create(self) -> None:
        """Make the file without rows, durably but for its name in the folder."""
        with self.path.open("wb") as file:
            file.write(self._header)
            file.flush()
            os.fsync(file.fileno())

    def append(self, start: int, rows: NDArray[Any]) -> None:
        """Write rows from row `start` on, durably; whatever lay beyond is dropped."""
        with self.path.open("r+b", buffering=0) as file:
            self._check(file.read(_HEADER.size), os.fstat(file.fileno()).st_size, start)
            offset = _HEADER.size + start * self.dtype.itemsize
            file.truncate(offset)
            try:
                _write(file.fileno(), rows, offset)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(offset)  # a full disk gets back what the torn tail took
                raise

    def map(self, count: int) -> NDArray[Any]:
        """Map the first `count` rows, read-only; raises StoreCorrupt if they are not all there."""
        with self.path.open("rb") as file:
            self._check(file.read(_HEADER.size), os.fstat(file.fileno()).st_size, count)
            if not count:
                return np.empty(0, self.dtype)
            mapping = np.memmap(file, self.dtype, "r", offset=_HEADER.size, shape=(count,))
        return np.asarray(mapping)

    @property
    def _header(self) -> bytes:
        return _HEADER.pack(self.magic, self.dtype.itemsize, self.generation)

    def _check(self, header: bytes, size: int, count: int) -> None:
        if header != self._header:
            raise corrupt(self.path, "does not begin as this datastore's file")
        held = (size - _HEADER.size) // self.dtype.itemsize
        if held < count:
            raise corrupt(self.path, f"is cut short: it holds {held} of {count} rows")


def _write(handle: int, rows: NDArray[Any], offset: int) -> None:
    """Write all bytes of `rows` at `offset`."""
    left = np.ascontiguousarray(rows).view(np.uint8).data
    while left:
        written = os.pwrite(handle, left, offset)
        left, offset = left[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Make names of new files in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def leftovers(folder: Path, generation: int) -> list[Path]:
    """Files of other generations, and unfinished ones: what killed processes left."""
    found = []
    for path in folder.iterdir():
        match = _OURS.fullmatch(path.name)
        if match and (match[2] or int(match[1]) != generation):
            found.append(path)
    return found


def is_ours(path: Path) -> bool:
    """Whether a file in a datastore's folder is one that this adapter made."""
    return path.name.startswith("store.sqlite") or _OURS.fullmatch(path.name) is not None
