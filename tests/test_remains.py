"""The search for remains finds what is planted, in whatever form and file, and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knnlm_store.values import Entries, Int64
from tests.remains import remains, traces, unpacked

NAME = "a secret chapter.txt"
NOISE = np.random.default_rng(9).bytes(1 << 21)


def entries(number: int) -> Entries:
    random, positions = np.random.default_rng(number % 1000), np.arange(8, dtype=np.int64)
    keys = random.normal(size=(8, 16)).astype(np.float32)
    tokens: Int64 = random.integers(2**30, 2**32, 8)
    return Entries(keys, tokens, positions * 0 + number, positions)


GONE, KEPT = entries(2**61 + 123_456_789), entries(2**60 + 987_654_321)
KEY, TOKENS, ID = GONE.keys[5], GONE.tokens, GONE.ids[3].item()
TRACES, OTHERS = traces(GONE, [NAME], [b"its fingerprint!"]), traces(KEPT, ["kept.txt"])

FORMS = {
    "key, float32": KEY.tobytes()[7:23],
    "key, float16": KEY.astype("<f2").tobytes()[1:17],
    "key, int8": np.rint(KEY / (np.abs(KEY).max() / 127)).astype(np.int8).tobytes(),
    "key, CBOR": b"\xfa".join(KEY[i : i + 1].astype(">f4").tobytes() for i in range(4)),
    "tokens, uint32": TOKENS[2:6].astype("<u4").tobytes(),
    "tokens, int64": TOKENS[2:4].tobytes(),
    "tokens, as text": json.dumps(TOKENS[2:5].tolist()).encode(),
    "token, JSON": json.dumps({"d": 1, "t": TOKENS[0].item()}, separators=(",", ":")).encode(),
    "id, little endian": ID.to_bytes(8, "little"),
    "id, big endian": ID.to_bytes(8, "big"),
    "id, as text": str(ID).encode(),
    NAME: NAME.encode()[2:18],
    f"{NAME}, in base64": base64.b64encode(b'{"name":"' + NAME.encode() + b'"}'),
    "bytes that stand for it": b"its fingerprint!",
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found_wherever_it_lies(tmp_path: Path, form: str) -> None:
    """At any offset, across the pieces that files are read in, and behind a hole."""
    for number, start in enumerate((0, 1, (1 << 20) - 5, len(NOISE) - 64)):
        data = NOISE[:start] + FORMS[form] + NOISE[start:]
        (tmp_path / f"file{number}").write_bytes(data)
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"|" + FORMS[form])
    found = remains(tmp_path, TRACES, OTHERS)
    assert {line.partition(": ")[0] for line in found} == {f"file{i}" for i in range(4)} | {
        "sparse"
    }
    assert any(line.endswith(f": {form}") for line in found)


def test_what_others_share_is_no_remnant(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(NOISE)
    (tmp_path / "kept").write_bytes(b"".join(OTHERS) + KEPT.keys.tobytes())
    (tmp_path / "empty").touch()
    assert remains(tmp_path, TRACES, OTHERS) == []
    assert remains(tmp_path, TRACES | OTHERS, OTHERS) == []


def test_the_name_of_a_file_tells_as_well(tmp_path: Path) -> None:
    (tmp_path / f"{ID}.parquet.removed").touch()
    assert remains(tmp_path, TRACES, OTHERS) == [f"{ID}.parquet.removed: id, as text"]


def in_parquet(path: Path) -> None:
    keys = pa.FixedSizeListArray.from_arrays(pa.array(GONE.keys.ravel()), 16)
    pq.write_table(pa.table({"id": GONE.ids, "key": keys, "name": [NAME] * 8}), path)


def in_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(KEY.tobytes() + NAME.encode() * 100))


def in_a_frame(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(NAME.encode() * 100)


def in_gridstore(path: Path) -> None:
    """A value in the third block of a page, in LZ4 that repeats what stood before."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"block_size_bytes": 128, "compression": "LZ4"}))
    value = b"a secret; " * 20 + b"chapter.txt" + NAME[:4].encode() + NAME[4:].encode()
    packed = pa.Codec("lz4_raw").compress(value, asbytes=True)
    assert NAME.encode() not in packed
    data = bytes(256) + len(value).to_bytes(4, "little") + packed
    (path / "page_0.dat").write_bytes(data.ljust(1 << 16, b"\0"))


@pytest.mark.parametrize("plant", [in_parquet, in_gzip, in_a_frame, in_gridstore])
def test_what_is_compressed_is_unpacked(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "planted")
    assert any(line.endswith(f": {NAME}") for line in remains(tmp_path, TRACES, OTHERS))


def test_lz4_blocks_unpack_as_pyarrow_packs_them() -> None:
    random = np.random.default_rng(0)
    for size in (1, 14, 15, 16, 300, 5000):
        for alphabet in (1, 4, 256):
            value = random.integers(0, alphabet, size, np.uint8).tobytes()
            packed = pa.Codec("lz4_raw").compress(value, asbytes=True)
            assert unpacked(memoryview(packed + b"what follows"), size) == value
    assert unpacked(memoryview(b"\xff\xff"), 100) == b""
