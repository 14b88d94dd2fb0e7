"""Bundles that must not be imported: each is refused in a sentence, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store.bundle import export_bundle, import_bundle, listing
from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreMismatch, StoreNotFound, UsageError
from knnlm_store.transform import Transform
from tests.bundle_support import exported, refused, said, say
from tests.cli_support import contents
from tests.doctor_support import DIMENSION, fill, manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture(params=["new", "old"])
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Where to import to: nothing is there, or a datastore of the same model."""
    if request.param == "old":
        with Datastore.open_or_create(f"faiss:{tmp_path}/there/law", manifest()):
            pass
    return tmp_path / "there"


# -- files -----------------------------------------------------------------------------------------


def test_each_file_altered_cut_or_missing(bundle: Path, tmp_path: Path) -> None:
    """An altered byte, wherever it is; an end that is missing; a file that is missing."""
    target, names = tmp_path / "there", [file["name"] for file in said(bundle)["files"]]
    assert len(names) > 5
    for name in names:
        content = (bundle / name).read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            altered = bytearray(content)
            altered[place] ^= 1
            (bundle / name).write_bytes(altered)
            assert f"{bundle / name} was altered" in str(refused(bundle, target))
        (bundle / name).write_bytes(content[:-1])
        assert f"{bundle / name} was cut short: it has" in str(refused(bundle, target))
        (bundle / name).write_bytes(content + b"x")
        assert f"{bundle / name} is too long: it has" in str(refused(bundle, target))
        (bundle / name).unlink()
        assert str(refused(bundle, target)) == f"{bundle / name} is missing."
        (bundle / name).mkdir()
        assert str(refused(bundle, target)) == f"{bundle / name} is not an ordinary file."
        (bundle / name).rmdir()
        (bundle / name).write_bytes(content)
    assert import_bundle(bundle, f"faiss:{target}/law").copied == 6


def test_any_byte_of_bundle_json(bundle: Path) -> None:
    """Every third one."""
    text = (bundle / "bundle.json").read_bytes()
    for place in range(0, len(text), 3):
        altered = bytearray(text)
        altered[place] ^= 1
        if json_of(bytes(altered)) != json_of(text):  # but for the case of a digit of an escape
            with pytest.raises((StoreCorrupt, StoreNotFound, StoreMismatch)):
                listing._decode(bytes(altered), bundle)


def json_of(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_a_file_more_is_ignored(bundle: Path, tmp_path: Path) -> None:
    (bundle / "README").write_text("mine")
    assert import_bundle(bundle, f"faiss:{tmp_path}/law").copied == 6


def test_no_bundle_at_all(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "no"
    assert str(refused(folder, target)) == f"There is no bundle at {folder}."
    folder.mkdir()
    assert str(refused(folder, target)) == f"{folder} is no bundle: it has no bundle.json."
    for text, what in (
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is another program's"),
        (b'{"kind": "backup"}', "is another program's"),
        (b'{"kind": "knnlm-store bundle", "format": 1}', "was altered"),
    ):
        (folder / "bundle.json").write_bytes(text)
        assert what in str(refused(folder, target))


@pytest.mark.parametrize(
    "name", ["../entries-00000.parquet", "/etc/passwd", "a/b", "..", "", ".hidden", "bundle.json"]
)
def test_a_path_that_escapes(bundle: Path, target: Path, name: str) -> None:
    def escape(body: dict[str, Any]) -> None:
        body["files"][0]["name"] = name

    say(bundle, escape)
    error = refused(bundle, target)
    assert f"names the file {name!r}, which is no plain name of a bundle's file" in str(error)
    assert error.hint.startswith("Do not trust this bundle")


def test_links(bundle: Path, tmp_path: Path, target: Path) -> None:
    """One that leads out is refused, though the file behind it be right; one inside will do."""
    path, outside = bundle / "documents.parquet", tmp_path / "elsewhere"
    path.rename(outside)
    path.symlink_to(outside)
    assert str(refused(bundle, target)) == f"{path} is a link that leads out of the bundle."
    path.unlink()
    path.symlink_to(path.name)
    assert str(refused(bundle, target)) == (
        f"{path} cannot be read: it is a link that leads nowhere."
    )
    path.unlink()
    os.mkfifo(path)
    assert "bytes" in str(refused(bundle, target)) or "ordinary" in str(refused(bundle, target))
    path.unlink()
    outside.rename(bundle / "inside")
    path.symlink_to("inside")
    (bundle / "bundle.json").rename(tmp_path / "bundle.json")
    (bundle / "bundle.json").symlink_to(tmp_path / "bundle.json")
    assert "leads out of the bundle" in str(refused(bundle, target))
    (bundle / "bundle.json").unlink()
    (tmp_path / "bundle.json").rename(bundle / "bundle.json")
    assert import_bundle(bundle, f"faiss:{target}/law").copied == 6


# -- what bundle.json says -------------------------------------------------------------------------


def test_a_newer_format(bundle: Path, target: Path) -> None:
    say(bundle, lambda body: body.update(format=listing.FORMAT + 1))
    error = refused(bundle, target)
    assert "has the bundle format 2; this version reads format 1" in str(error)
    assert isinstance(error, StoreMismatch)
    assert (error.field, error.hint) == ("format", "Run: pip install --upgrade knnlm-store")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("manifest"),
        lambda body: body.pop("files"),
        lambda body: body.update(files={}),
        lambda body: body.update(format="1"),
        lambda body: body.update(dimension=True),
        lambda body: body.update(entries=-1),
        lambda body: body.update(entries=302),
        lambda body: body.update(documents=7),
        lambda body: body["files"].append(body["files"][0]),
        lambda body: body["files"].pop(),
        lambda body: body["files"][0].update(holds="music"),
        lambda body: body["files"][0].update(bytes="1"),
        lambda body: body["files"][0].pop("sha256"),
        lambda body: body["files"].append("entries"),
    ],
)
def test_what_it_lacks(bundle: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    say(bundle, change)
    assert "bundle.json lacks what a bundle must say" in str(refused(bundle, tmp_path / "there"))


# -- targets that it does not fit ------------------------------------------------------------------


def transform(seed: int) -> Transform:
    rng = np.random.default_rng(seed)
    mean = np.zeros(DIMENSION, np.float32)
    return Transform(mean, rng.standard_normal((DIMENSION, DIMENSION)).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"key": "lm_head_input"}, "with key 'lm_head_input', not 'last_ffn_input'"),
        ({"tokenizer": "other"}, "with tokenizer 'other', not 'digest'"),
        ({"probe": -np.ones((3, DIMENSION), np.float32)}, "was written by another model"),
        ({"probe": np.ones((3, 8), np.float32), "dimension": 8}, "was written by another model"),
    ],
)
def test_another_fingerprint(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    Datastore.open_or_create(f"faiss:{tmp_path}/there/law", manifest(**changes)).close()
    error = refused(bundle, tmp_path / "there")
    assert told in str(error)
    assert error.hint == "Import it under another --name than law."


def test_another_key_transform(tmp_path: Path) -> None:
    """Keys of the same dimension, which would be compared with what they cannot be compared to."""
    with Datastore.open_or_create("memory:", manifest().mapping(transform(0))) as store:
        fill(store, 4)
        export_bundle(store, tmp_path / "bundle")
        uri = f"faiss:{tmp_path}/there/law"
        other = manifest().mapping(transform(1))
        Datastore.open_or_create(uri, other).close()
        error = refused(tmp_path / "bundle", tmp_path / "there")
        assert isinstance(error, StoreMismatch)
        assert error.field == "transform"
        before = contents(uri)
        with Datastore.open(uri) as target, pytest.raises(StoreMismatch, match="by the transform"):
            copy(store, target)
        assert contents(uri) == before


def test_settings_that_cannot_be(bundle: Path, tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/there/law"
    for settings in ({"storage": "float8"}, {"options": {"colour": "red"}}):
        with pytest.raises(UsageError):
            import_bundle(bundle, uri, **settings)
    assert not (tmp_path / "there").exists()
    import_bundle(bundle, uri)
    with pytest.raises(UsageError, match="keeps keys as float32, not float16"):
        import_bundle(bundle, uri, storage="float16")
