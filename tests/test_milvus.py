"""Names, places and plans of the Milvus adapter: what needs no Milvus."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from knnlm_store.errors import BackendUnavailable, StoreCorrupt, UsageError
from knnlm_store.values import Location, Spec
from knnlm_store_milvus import MilvusBackend, naming, place
from knnlm_store_milvus.indexes import Plan, parse_mark
from knnlm_store_milvus.place import Place
from tests.qdrant_front import certificate

ODD = ["9", "a__b", "a_", "_a", "a-b.c", "déjà/vu", "__records", "A__records", "日本", "_5f", " "]


@pytest.mark.parametrize("name", ["law", "Law2", "a_b_c", *ODD])
def test_names_come_back(name: str) -> None:
    coded = naming.encode(name)
    assert naming.decode(coded) == name
    assert naming.decode(naming.records_of(coded)) is None
    assert (coded == name) == (name not in ODD)
    assert coded.isascii()
    assert coded.replace("_", "a").isalnum()
    assert not coded[0].isdigit()


@pytest.mark.parametrize("name", ["", "x" * 247, "日" * 30])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a datastore"):
        naming.encode(name)


def test_foreign_collections_are_no_names() -> None:
    for name in ("_a", "a__records", "_zz", "__5F", "_ff", "a__b"):
        assert naming.decode(name) is None


def test_place_of_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KNNLM_MILVUS_TOKEN", raising=False)
    (tmp_path / "token").write_text("user:secret\n")
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("KNNLM_MILVUS_TIMEOUT", "2.5")
    found = Place.of(Location("milvus", "db.example:1234/laws", "law", network=True))
    assert (found.uri, found.database) == ("http://db.example:1234", "laws")
    assert (found.token, found.timeout, found.lite) == ("user:secret", 2.5, None)
    assert "secret" not in repr(found)
    assert Place.of(Location("milvuss", "[::1]", "law", network=True)).uri == "https://[::1]:19530"
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", "key")
    assert Place.of(Location("milvus", "localhost", "law", network=True)).token == "key"


@pytest.mark.parametrize("root", ["", "a b:1", "host:port", "host:1/a/b", "host:1/a-b", "h/"])
def test_place_that_cannot_be(root: str) -> None:
    if root == "h/":  # a slash at the end names no database
        assert Place.of(Location("milvus", root, "law", network=True)).database == ""
        return
    with pytest.raises(UsageError, match="no Milvus server"):
        Place.of(Location("milvus", root, "law", network=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KNNLM_MILVUS_TIMEOUT", "soon"),
        ("KNNLM_MILVUS_TIMEOUT", "0"),
        ("KNNLM_MILVUS_CA", "/nowhere/ca.pem"),
        ("KNNLM_MILVUS_TOKEN_FILE", "/nowhere/token"),
    ],
)
def test_environment_that_cannot_be(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv("KNNLM_MILVUS_TOKEN", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        Place.of(Location("milvuss", "localhost:1", "law", network=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"root:S3cret\nroot:S3cret\n", "characters that no token may have"),
    ],
    ids=["missing", "binary", "empty", "blank", "two-lines"],
)
def test_token_files_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.delenv("KNNLM_MILVUS_TOKEN", raising=False)
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN_FILE", str(file))
    with pytest.raises(UsageError, match=words) as told:
        MilvusBackend.connect(Location("milvus", "localhost:1", "law", network=True))
    assert str(file) in str(told.value)
    assert told.value.hint
    assert "S3cret" not in str(told.value) + told.value.hint


def test_token_of_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", "root:S3cret\nroot:S3cret")
    with pytest.raises(UsageError, match="What KNNLM_MILVUS_TOKEN holds is no token") as told:
        Place.of(Location("milvus", "localhost:1", "law", network=True))
    assert "S3cret" not in str(told.value) + told.value.hint


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_authorities_that_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("KNNLM_MILVUS_CA", str(file))
    with pytest.raises(UsageError, match="is no file of certificates"):
        MilvusBackend.connect(Location("milvuss", "localhost:1", "law", network=True))


def test_authority_that_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pem, _ = certificate(tmp_path, "ours")
    monkeypatch.setenv("KNNLM_MILVUS_CA", str(pem))
    assert Place.of(Location("milvuss", "localhost:1", "law", network=True)).ca == str(pem)
    assert Place.of(Location("milvus", "localhost:1", "law", network=True)).ca == ""


def test_token_without_tls_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(place, "_warned", set())
    monkeypatch.delenv("KNNLM_MILVUS_CA", raising=False)
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", "root:S3cret")
    caplog.set_level(logging.DEBUG)
    for root in ("localhost:1", "127.0.0.2", "[::1]:6333"):
        Place.of(Location("milvus", root, "law", network=True))
    Place.of(Location("milvuss", "far.example", "law", network=True))
    assert caplog.text == ""
    for _ in range(2):
        Place.of(Location("milvus", "far.example", "law", network=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "The token goes to far.example:19530 unencrypted; with TLS write milvuss:// instead."
    )


def test_file_of_lite_has_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file of Milvus Lite"):
        MilvusBackend.connect(Location("milvus", str(tmp_path), "law"))


@pytest.mark.parametrize("k", [1, 10, 1024, 16384])
def test_search_is_broad_enough(k: int) -> None:
    hnsw = Plan.of(Spec(576), lite=False)
    assert hnsw.search(k)["params"]["ef"] >= 2 * k
    assert hnsw.search(k)["params"]["ef"] <= 32768
    ivf = Plan.of(Spec(576, options={"index": "ivf_flat"}), lite=False)
    nlist, nprobe = ivf.params["nlist"], ivf.search(k)["params"]["nprobe"]
    assert nprobe == nlist or 39 * nprobe >= 7 * k
    assert 32 <= nprobe <= nlist
    assert Plan.of(Spec(8, options={"index": "exact"}), lite=False).search(k)["params"] == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": "diskann"}, "option index"),
        ({"m": "1"}, "option m "),
        ({"m": "four"}, "option m "),
        ({"ef_construction": "-3"}, "option ef_construction"),
        ({"shards": "0"}, "option shards"),
        ({"replicas": "1.5"}, "option replicas"),
        ({"index": "exact", "m": "8"}, "of hnsw"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Plan.of(Spec(8, options=options), lite=False)


def test_plan_is_read_back() -> None:
    plan = Plan.of(Spec(8, options={"m": "24", "shards": "2", "replicas": "3"}), lite=False)
    mark = parse_mark(plan.mark("me"))
    assert mark is not None
    assert Plan.read(mark, "here") == plan
    assert str(plan) == "HNSW (M 24, efConstruction 200)"
    with pytest.raises(StoreCorrupt, match="another version"):
        Plan.read(mark | {"knnlm-store": 2}, "here")
    with pytest.raises(StoreCorrupt, match="damaged"):
        Plan.read({"knnlm-store": 1}, "here")
    for foreign in ("", "a collection", "[]", '{"by": "others"}'):
        assert parse_mark(foreign) is None


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNNLM_MILVUS_TIMEOUT", "0.5")
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", "user:secret")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="not reachable, or refuses the token") as told:
        MilvusBackend.connect(Location("milvus", "localhost:1", "law", network=True))
    assert time.monotonic() - began < 5
    assert "secret" not in str(told.value) + told.value.hint
