"""The saved index: centroids and the list of each row, without the keys.

It is a cache. What it holds can be had again from the data files, so whatever is wrong with it
is a reason to train anew, never an error.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np

from knnlm_store_faiss.datafiles import sync_folder
from knnlm_store_faiss.ivf import IvfIndex, Lists

_MAGIC = b"KNNLMIVF"
_HEADER = struct.Struct("<8sQQQQI")  # magic, generation, rows, trained on, blob's bytes, CRC-32


class CacheUnusable(Exception):
    """The saved index is missing, damaged or of another generation."""


def pack(generation: int, index: IvfIndex) -> bytes:
    """Turn the index of data files of `generation` into the bytes to save."""
    body = index.blob.tobytes() + index.lists.astype("<u2").tobytes()
    sizes = (generation, index.rows, index.trained_on, index.blob.nbytes)
    return _HEADER.pack(_MAGIC, *sizes, _digest(sizes, body)) + body


def save(folder: Path, generation: int, packed: bytes) -> None:
    """Write a packed index atomically; to be called inside a write transaction of the ledger."""
    path = _path(folder, generation)
    unfinished = path.with_name(path.name + ".new")
    with unfinished.open("wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(folder)


def load(folder: Path, generation: int, rows: int) -> tuple[IvfIndex, Lists]:
    """Read an index without rows, and the lists of the first rows, at most `rows`.

    Raises CacheUnusable.
    """
    try:
        data = _path(folder, generation).read_bytes()
    except OSError as error:
        raise CacheUnusable(str(error)) from error
    if len(data) < _HEADER.size:
        raise CacheUnusable("it is cut short")
    magic, *sizes, digest = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != _MAGIC or digest != _digest(tuple(sizes), body):
        raise CacheUnusable("its checksum is wrong")
    of_generation, saved_rows, trained_on, blob_size = sizes
    if of_generation != generation:
        raise CacheUnusable("it belongs to other data files")
    try:
        index = IvfIndex(np.frombuffer(body, np.uint8, blob_size).copy(), trained_on)
    except RuntimeError as error:
        raise CacheUnusable("this FAISS does not read it") from error
    lists = np.frombuffer(body, "<u2", saved_rows, offset=blob_size).astype(np.uint16)
    return index, lists[:rows]


def _path(folder: Path, generation: int) -> Path:
    return folder / f"index.{generation}"


def _digest(sizes: tuple[int, ...], body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(repr(sizes).encode()))
