"""Bundles whose checksums are right and whose contents are not: refused, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knnlm_store.bundle import tables
from tests.bundle_support import column, exported, forge, refused, said, say
from tests.doctor_support import APART, DIMENSION

FIRST = "entries-00000.parquet"
SHIFT = column("position", lambda values: [v + 1 for v in values])
ONE_BY_ONE = "does not hold the tokens of"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def spoil(value: float) -> Callable[[pa.Table], pa.Table]:
    return column("key", lambda keys: [[value] * DIMENSION, *keys[1:]])


def test_entries_that_the_catalog_does_not_know(bundle: Path, tmp_path: Path) -> None:
    """Missing, out of order, another's, with another id, twice; no number, and not finite."""
    forged: dict[str, Callable[[pa.Table], pa.Table]] = {
        "one less": lambda table: table.slice(1),
        "turned": lambda table: table.take([*range(1, len(table)), 0]),
        "twice": lambda table: pa.concat_tables(
            [table.slice(0, 1), table.slice(0, len(table) - 1)]
        ),
        "shifted": SHIFT,
        "another's": column("document", lambda values: [v + APART for v in values]),
        "another id": column("id", lambda values: [v + 1 for v in values]),
    }
    for name, change in forged.items():
        copied = shutil.copytree(bundle, tmp_path / name)
        forge(copied, FIRST, change)
        told = str(refused(copied, tmp_path / "there"))
        assert ONE_BY_ONE in told or "promises another number of entries" in told, name
        assert str(copied) in told
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("large", 3e38)):
        copied = shutil.copytree(bundle, tmp_path / name)
        forge(copied, FIRST, spoil(value))
        assert f"{copied / FIRST} holds entries that cannot be" in str(
            refused(copied, tmp_path / "there")
        )


def test_columns_and_rows(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    kept = (bundle / FIRST).read_bytes(), (bundle / "bundle.json").read_text()

    def back() -> None:
        (bundle / FIRST).write_bytes(kept[0])
        (bundle / "bundle.json").write_text(kept[1])

    forge(bundle, FIRST, lambda table: table.drop_columns(["token"]))
    assert "has other columns than" in str(refused(bundle, target))
    back()
    halves = pa.list_(pa.field("element", pa.float16(), nullable=False), DIMENSION)
    forge(
        bundle,
        FIRST,
        lambda t: t.set_column(4, pa.field("key", halves, False), t["key"].cast(halves)),
    )
    assert "has other columns than" in str(refused(bundle, target))
    back()
    rows = said(bundle)["files"][0]["rows"]

    def move(body: dict[str, Any]) -> None:
        body["files"][0]["rows"] += 1
        body["files"][1]["rows"] -= 1

    say(bundle, move)
    told = str(refused(bundle, target))
    assert "has another number of rows than the bundle says" in told
    assert rows == said(bundle)["files"][0]["rows"] - 1
    back()
    content = b"PAR1" + b"\0" * 100

    def other(body: dict[str, Any]) -> None:
        digest = hashlib.sha256(content).hexdigest()
        body["files"][0] |= {"bytes": len(content), "sha256": digest}

    (bundle / FIRST).write_bytes(content)
    say(bundle, other)
    assert "cannot be read as Parquet" in str(refused(bundle, target))


def changed_record(**changes: Any) -> Callable[[pa.Table], pa.Table]:
    """Change the record of the first document, or its version."""

    def change(values: list[str]) -> list[str]:
        record = json.loads(values[0])
        for name, value in changes.items():
            (record["version"] if name in record["version"] else record)[name] = value
        return [json.dumps(record), *values[1:]]

    return column("record", change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (column("record", lambda v: ["{", *v[1:]]), "that cannot be read"),
        (column("record", lambda v: ["{}", *v[1:]]), "that cannot be read"),
        (changed_record(number=5), "that no datastore writes"),
        (changed_record(name="other"), "that no datastore writes"),
        (changed_record(metadata=[]), "that no datastore writes"),
        (changed_record(digest=5), "that no datastore writes"),
        (changed_record(at="today"), "that no datastore writes"),
        (changed_record(at=float("nan")), "that no datastore writes"),
        (changed_record(size=None), "that no datastore writes"),
        (changed_record(size=-1), "that no datastore writes"),
        (changed_record(size=10**400), "that no datastore writes"),
        (changed_record(salt="a"), "that no datastore writes"),
        (changed_record(metadata={"a": "\ud800"}), "that cannot be read"),
        (changed_record(earlier=[{"at": "x"}]), "that cannot be read"),
        (changed_record(earlier=[{"at": "x", "tokens": 1}]), "that no datastore writes"),
        (changed_record(earlier=[{"at": 1e300, "tokens": 1}]), "that no datastore writes"),
        (changed_record(earlier=[{"at": 1.0, "tokens": "1"}]), "that no datastore writes"),
        (changed_record(stale=[7]), "that no datastore writes"),
        (changed_record(forgotten=True), "that no datastore writes"),
        (changed_record(forgotten=1), "that no datastore writes"),
        (lambda table: table.take([1, 0, *range(2, len(table))]), "twice, or out of order"),
        (lambda table: table.take([0, 0, *range(2, len(table))]), "twice, or out of order"),
        (lambda table: table.slice(1), "promises another number of entries"),
    ],
)
def test_catalogs_that_no_datastore_writes(
    bundle: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    forge(bundle, "documents.parquet", change)
    error = refused(bundle, tmp_path / "there")
    assert str(error).startswith(str(bundle / "documents.parquet"))
    assert told in str(error)


def with_number(number: int) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        table = changed_record(number=number)(table)
        return column("number", lambda values: [number, *values[1:]])(table)

    return change


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (-1, "ids that cannot be"),
        (2**63 - 3, "ids that cannot be"),
        (2 * APART, "share an id"),
        (2 * APART - 3, "share an id"),
    ],
)
def test_ids_that_cannot_be(bundle: Path, tmp_path: Path, number: int, told: str) -> None:
    forge(bundle, "documents.parquet", with_number(number))
    assert told in str(refused(bundle, tmp_path / "there"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.slice(1), "holds no manifest that can be read"),
        (column("value", lambda v: [b"{}", *v[1:]]), "holds no manifest that can be read"),
        (column("value", lambda v: [v[0], b"no array"]), "holds no manifest that can be read"),
        (
            column("value", lambda v: [v[0].replace(b'"little"', b"5"), v[1]]),
            "holds no manifest that can be read",
        ),
        (
            column("value", lambda v: [v[0].replace(b"little", b"bigger"), v[1]]),
            "holds another manifest than bundle.json shows",
        ),
        (column("name", lambda v: [v[0], "document/x"]), "holds the record 'document/x'"),
        (column("name", lambda v: [v[0], v[0]]), "holds the record 'manifest'"),
    ],
)
def test_records_that_cannot_stand_there(
    bundle: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    assert pq.read_table(bundle / "records.parquet")["name"].to_pylist() == ["manifest", "probe"]
    forge(bundle, "records.parquet", change)
    assert told in str(refused(bundle, tmp_path / "there"))


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    with tables._Hashed(tmp_path / "file") as file:
        assert file.write(b"four") == 4
    assert file.digest.hexdigest() == hashlib.sha256(b"four").hexdigest()


def test_a_newer_datastore(bundle: Path, tmp_path: Path) -> None:
    newer = column("value", lambda v: [v[0].replace(b'"format": 1', b'"format": 2'), v[1]])
    forge(bundle, "records.parquet", newer)
    error = refused(bundle, tmp_path / "there")
    assert "has format 2; this version reads format 1" in str(error)
