"""What files still hold of a document: bytes of its keys, tokens, ids and names, anywhere.

Every byte of every file of a folder is looked at, and once more what compressed parts unpack to:
Parquet (read with pyarrow), files of gzip, zstd or LZ4 frames, and the pages of Qdrant's Gridstore,
of which each block is unpacked that begins like a value, whether anything points to it or not.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnlm_store.values import Entries, Float32, Spec
from knnlm_store_faiss.datafiles import Codec

Traces = Mapping[bytes, str]
"""Bytes to look for, each with what they are."""

_WIDTH = 16  # bytes of a window: what is longer is found by any so many consecutive ones of it
_HEAD = 8  # bytes by which a pattern is looked up; none is shorter
_PIECE = 1 << 20
_BETWEEN = bytes(_WIDTH)
_FRAMES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}


def traces(entries: Entries, texts: Iterable[str], raw: Iterable[bytes] = ()) -> dict[bytes, str]:
    """What a document would leave, in each form that one of the backends might give it.

    texts: its names and whatever else is said of it. raw: bytes that stand for it.
    """
    found: dict[bytes, str] = {}
    for what, stream in (*_of_keys(entries.keys), *_of_tokens(entries.tokens.tolist())):
        found |= dict.fromkeys(_windows(stream), what)
    for number in {*entries.ids.tolist(), *entries.documents.tolist()}:
        for order in ("little", "big"):
            found[number.to_bytes(8, order)] = f"id, {order} endian"
        found |= dict.fromkeys(_windows(str(number).encode()), "id, as text")
    for text in texts:
        for what, stream in _of_text(text):
            found |= dict.fromkeys(_windows(stream), what)
    for stream in raw:
        found |= dict.fromkeys(_windows(stream), "bytes that stand for it")
    return found


def quantised(folder: Path, keys: Float32) -> dict[bytes, str]:
    """What keys are as Qdrant rounds them to 7 bits, by the scale of each segment in a folder."""
    found: dict[bytes, str] = {}
    for file in folder.rglob("quantized.meta.json"):
        scale = json.loads(file.read_text())
        codes = np.rint(np.clip((keys - scale["offset"]) / scale["alpha"], 0, 127))
        for row in codes.astype(np.uint8):
            found |= dict.fromkeys(_windows(row.tobytes()), "key, 7 bits")
    return found


def remains(folder: Path, gone: Traces, kept: Traces) -> list[str]:
    """Tell what of `gone`, and not also of `kept`, is in the files of a folder, and where."""
    wanted = {pattern: what for pattern, what in gone.items() if pattern not in kept}
    finder = _Finder(wanted)
    found = {
        f"{path.relative_to(folder)}: {what}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for data in (str(path.relative_to(folder)).encode(), *_bytes_of(path))
        for what in finder.find(data)
    }
    return sorted(found)


# -- forms ---------------------------------------------------------------------------------------


def _of_keys(keys: Float32) -> Iterator[tuple[str, bytes]]:
    """Each key as float32, float16, in FAISS' int8, and as CBOR, which Qdrant writes its log in."""
    dimension = keys.shape[1]
    for storage in ("float32", "float16", "int8"):
        for row in Codec(Spec(dimension, storage)).encode(keys):
            yield f"key, {storage}", row.tobytes()
    for key in keys.astype(">f4"):
        yield "key, CBOR", b"".join(b"\xfa" + key[i : i + 1].tobytes() for i in range(dimension))


def _of_tokens(tokens: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """The tokens in a row, and each as it stands beside its key in Qdrant."""
    yield "tokens, uint32", np.array(tokens, "<u4").tobytes()
    yield "tokens, int64", np.array(tokens, "<i8").tobytes()
    for separators in ((",", ":"), (", ", ": ")):
        yield "tokens, as text", json.dumps(tokens, separators=separators).encode()
    for token in tokens:
        yield "token, JSON", f'"t":{token}}}'.encode()


def _of_text(text: str) -> Iterator[tuple[str, bytes]]:
    """A text in UTF-8, in JSON, and in base64, wherever in a longer one it begins."""
    yield f"{text}, in JSON", json.dumps(text)[1:-1].encode()
    yield text, text.encode()  # which most texts are in JSON as well
    for shift in range(3):
        coded = base64.b64encode(bytes(shift) + text.encode()).rstrip(b"=")
        yield f"{text}, in base64", coded[(0, 2, 3)[shift] : -1]  # the ends mix with what is beside


def _windows(stream: bytes) -> list[bytes]:
    """All runs of 16 bytes; of a shorter stream itself, unless it could be found by chance."""
    if len(stream) < _WIDTH:
        return [stream] if len(stream) >= _HEAD else []
    return [stream[i : i + _WIDTH] for i in range(len(stream) - _WIDTH + 1)]


# -- files ---------------------------------------------------------------------------------------


def _bytes_of(path: Path) -> Iterator[bytes]:
    """Everything in a file: as it lies there, and unpacked."""
    yield from _raw(path)
    with path.open("rb") as file:
        start = file.read(4)
    frame = next((kind for magic, kind in _FRAMES.items() if start.startswith(magic)), None)
    if frame is not None:
        with pa.input_stream(str(path), compression=frame) as stream:
            yield stream.read()
    elif start == b"PAR1":
        for column in pq.read_table(path).columns:
            for chunk in column.chunks:
                yield _BETWEEN.join(buffer.to_pybytes() for buffer in chunk.buffers() if buffer)
    elif path.name.startswith("page_") and (block := _block_of(path.parent)):
        yield _BETWEEN.join(_values(path, block))


def _raw(path: Path) -> Iterator[bytes]:
    """What is written in a file, without its holes, in pieces that overlap."""
    with path.open("rb", buffering=0) as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole is left
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for at in range(start, end, _PIECE):
                yield os.pread(file.fileno(), min(_PIECE + _WIDTH - 1, end - at), at)


def _block_of(folder: Path) -> int:
    """Bytes of a block in a folder of Gridstore with compressed values; 0 for other folders."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return 0
    return int(config["block_size_bytes"]) if config.get("compression") == "LZ4" else 0


def _values(path: Path, block: int) -> Iterator[bytes]:
    data = path.read_bytes()
    for start in range(0, len(data), block):
        size = int.from_bytes(data[start : start + 4], "little")
        if 0 < size <= 1 << 24:
            yield unpacked(memoryview(data)[start + 4 :], size)


def unpacked(packed: memoryview, size: int) -> bytes:
    """Unpack an LZ4 block of `size` bytes; as far as it goes, if it is none."""
    out, at = bytearray(), 0
    try:
        while len(out) < size:
            token, at = packed[at], at + 1
            count, at = _length(packed, at, token >> 4)
            out += packed[at : at + count]
            at += count
            if len(out) >= size:
                break
            offset, at = int.from_bytes(packed[at : at + 2], "little"), at + 2
            count, at = _length(packed, at, token & 15)
            if not 0 < offset <= len(out):
                break
            for _ in range(count + 4):
                out.append(out[-offset])
    except IndexError:
        pass
    return bytes(out[:size])


def _length(packed: memoryview, at: int, count: int) -> tuple[int, int]:
    """Read a length that begins with four bits, and where it ends."""
    while count >= 15:
        more, at = packed[at], at + 1
        count += more
        if more < 255:
            break
    return count, at


# -- search --------------------------------------------------------------------------------------


class _Finder:
    """Finds many patterns in one pass over the data, at any offset."""

    def __init__(self, patterns: Traces) -> None:
        self._by_head: dict[int, list[tuple[bytes, str]]] = {}
        for pattern, what in patterns.items():
            head = int.from_bytes(pattern[:_HEAD], "little")
            self._by_head.setdefault(head, []).append((pattern, what))
        self._likely = np.zeros(1 << 16, np.bool_)
        self._likely[np.array(list(self._by_head), np.uint64).astype(np.uint16)] = True

    def find(self, data: bytes) -> set[str]:
        """Tell what is in the data."""
        found = set()
        for shift in range(_HEAD):
            count = (len(data) - shift) // _HEAD
            if count < 1:
                break
            words = np.frombuffer(data, "<u8", count, shift)
            for row in np.flatnonzero(self._likely[words.astype(np.uint16)]).tolist():
                start = shift + _HEAD * row
                for pattern, what in self._by_head.get(int(words[row]), ()):
                    if data[start : start + len(pattern)] == pattern:
                        found.add(what)
        return found
