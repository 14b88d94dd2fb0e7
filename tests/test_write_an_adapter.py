"""The adapter of docs/write-an-adapter.md: built from the page, installed, proved and used."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from abc import ABCMeta
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest

from knnlm_store import abilities, backend
from knnlm_store.errors import KnnlmError, StoreCorrupt, StoreNotFound, StoreNotWritable
from knnlm_store.values import Location, Spec

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "write-an-adapter.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL | re.MULTILINE))
BIN = Path(sys.executable).parent


def run(
    command: Sequence[str | Path], folder: Path, path: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with the packages at `path` beside those of this environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KNNLM", "PYTEST"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "PYTHONPATH": str(path), **more},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the page's adapter, installed there from its own wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name, content in FILES.items():
        (source / name).write_text(content, encoding="utf-8")
    python = [sys.executable, "-m"]
    built = run([*python, "build", "--wheel", "--no-isolation", "-o", "dist"], source, source)
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "dist").iterdir()
    offline = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    put = run([*python, "pip", "install", *offline, "--target", target, wheel], source, source)
    assert put.returncode == 0, put.stderr
    return target


def suite(folder: Path, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the page's test file, alone in a folder."""
    (folder / "test_sqlite.py").write_text(FILES["test_sqlite.py"], encoding="utf-8")
    command: list[str | Path] = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    return run([*command, *options, "test_sqlite.py"], folder, path)


def test_the_page_has_all_three_files() -> None:
    assert set(FILES) == {"knnlm_store_sqlite.py", "pyproject.toml", "test_sqlite.py"}
    assert len(re.findall(r"^```\w", TEXT, flags=re.MULTILINE)) == len(FILES) + 1  # and the shell's


def test_the_distribution_is_its_own(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {
        "knnlm_store_sqlite.py",
        "__pycache__",
    }
    ours = [str(file) for file in distribution("knnlm-store").files or ()]
    assert not [file for file in ours if "sqlite" in file]


def test_the_suite_passes(installed: Path, tmp_path: Path) -> None:
    done = suite(tmp_path, installed)
    assert done.returncode == 0, done.stdout[-3000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 100
    assert "xfailed" not in done.stdout


FAULTS = {
    "test_distances_are_squared": (
        "return Neighbours(distances,",
        "return Neighbours(distances**.5,",
    ),
    "test_upsert_is_idempotent": ("REPLACE INTO entries", "INSERT INTO entries"),
    "test_one_of_two_creators_succeeds": ("if dimension(db):\n", "if False:\n"),
    "test_filter_sees_past_nearer_documents": ("if within is not None:", "if within is None:"),
}


@pytest.mark.parametrize("test", FAULTS)
def test_the_suite_catches_a_fault(test: str, tmp_path: Path) -> None:
    right, wrong = FAULTS[test]
    code = FILES["knnlm_store_sqlite.py"]
    assert code.count(right) == 1
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "knnlm_store_sqlite.py").write_text(code.replace(right, wrong), encoding="utf-8")
    done = suite(tmp_path, packages, "-k", test)
    assert done.returncode == 1, done.stdout
    assert f"::{test}" in done.stdout


def test_the_commands_of_the_page(installed: Path, saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("The creditor shall disclose. " * 5)
    (shell,) = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    commands = [line for line in shell.splitlines() if line.startswith("knnlm-store")]
    assert [command.split()[1] for command in commands] == ["ingest", "info"]
    told = ""
    for command in commands:
        words = command.replace("MODEL", str(saved_model)).split()
        done = run([BIN / words[0], *words[1:]], tmp_path, installed)
        assert done.returncode == 0, (command, done.stderr)
        told = done.stdout
    assert re.search(r"^backend: +sqlite$", told, flags=re.MULTILINE)
    assert re.search(r"^entries: +145$", told, flags=re.MULTILINE)  # a byte a token
    assert (tmp_path / "stores" / "law.db").is_file()


def test_it_works_like_ours(installed: Path, saved_model: Path, tmp_path: Path) -> None:
    """The second run skips, text is scored, a place is listed, a datastore removed."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("The creditor shall disclose. " * 5)

    def knnlm_store(*words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BIN / "knnlm-store", *words]
        return run(command, tmp_path, installed, KNNLM_STORE_MODEL=str(saved_model))

    store = "sqlite:stores/law"
    for counts in ({"added": 1, "skipped": 0}, {"added": 0, "skipped": 1}):
        done = knnlm_store("ingest", "--store", store, "corpus", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["documents"].items() >= counts.items()
    scored = knnlm_store("eval", "--store", store, "corpus", "--json", "--k", "4")
    assert scored.returncode == 0, scored.stderr
    report = json.loads(scored.stdout)
    assert report["mixture"]["perplexity"] < report["plain"]["perplexity"]
    assert knnlm_store("ls", "sqlite:stores").stdout == "sqlite:stores/law\n"
    assert knnlm_store("rm", store, "--yes").returncode == 0
    gone = knnlm_store("info", store)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("error: There is no datastore at sqlite:stores/law.\n")
    assert "Traceback" not in gone.stderr


# -- what the suite leaves to an adapter's own tests -----------------------------------------------


@pytest.fixture
def adapter(installed: Path, monkeypatch: pytest.MonkeyPatch) -> type[backend.VectorBackend]:
    monkeypatch.syspath_prepend(installed)
    (point,) = distribution("knnlm-store-sqlite").entry_points
    assert (point.group, point.name) == ("knnlm_store.backends", "sqlite")
    loaded: type[backend.VectorBackend] = point.load()
    return loaded


def test_errors_are_ours(adapter: type[backend.VectorBackend], tmp_path: Path) -> None:
    def provoke(name: str, root: Path = tmp_path) -> KnnlmError:
        store = adapter.connect(Location("sqlite", str(root), name))
        with pytest.raises(KnnlmError) as refusal:
            store.create(Spec(4), {}) if root != tmp_path else store.spec()
        assert str(refusal.value).count("\n") == 0
        return refusal.value

    (tmp_path / "text.db").write_text("no database, " * 100)
    assert type(provoke("text")) is StoreCorrupt
    assert type(provoke("absent")) is StoreNotFound
    (tmp_path / "empty.db").touch()  # what a `create` that was killed may leave
    assert type(provoke("empty")) is StoreNotFound
    assert type(provoke("law", tmp_path / "text.db")) is StoreNotWritable
    assert adapter.names(Location("sqlite", str(tmp_path / "nowhere"), "")) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_locked_file_may_be_tried_again(
    adapter: type[backend.VectorBackend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = adapter.connect(Location("sqlite", str(tmp_path), "law"))
    store.create(Spec(4), {"manifest": b"{}"})
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **b: connect(*a, **{**b, "timeout": 0}))
    other = connect(tmp_path / "law.db")
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(KnnlmError, match="locked") as refusal:
            store.put_records({"a": b"1"})
    finally:
        other.close()
    assert refusal.value.retryable
    store.put_records({"a": b"1"})
    assert store.get_records(["a"]) == {"a": b"1"}


# -- what the page says ----------------------------------------------------------------------------


def test_the_abilities_of_the_page_are_those_of_the_contract() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| (`[^|]+`) \|$", TEXT, flags=re.MULTILINE))
    there = {
        name: thing.__abstractmethods__
        for name, thing in vars(abilities).items()
        if isinstance(thing, ABCMeta) and thing.__module__ == abilities.__name__
    }
    assert set(said) == set(there)
    for name, methods in said.items():
        assert getattr(backend, name) is getattr(abilities, name)
        assert set(re.findall(r"\w+", methods)) == there[name]


def test_every_name_of_the_contract_is_there() -> None:
    _, _, after = TEXT.partition("What the [contract]")
    said = set(re.findall(r"`(_?[a-z]+(?:_[a-z]+)*)`", after.partition("## The entry point")[0]))
    public = {name for name in vars(backend.VectorBackend) if not name.startswith("__")}
    elsewhere = {"hint", "retryable"} | {
        method
        for ability in (backend.Indexed, backend.Compactable, backend.Aliased)
        for method in ability.__abstractmethods__
    }
    assert said - elsewhere - public == set()
    assert {"_upsert", "_search", "flush", "staleness_bound", "storages"} <= said


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
