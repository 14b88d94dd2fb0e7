"""What is shipped: the wheel and the source distribution, and the wheel alone in a fresh place."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import get_type_hints

import pytest

import knnlm_store
from knnlm_store.mixture import Fixed as FixedAtHome

ROOT = Path(__file__).parent.parent
ADAPTERS = [f"adapters/knnlm_store_{name}" for name in ("faiss", "lm_eval", "milvus", "qdrant")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"knnlm_store", *(Path(adapter).name for adapter in ADAPTERS)}


def build(kind: str, target: Path) -> Path:
    options = [f"--{kind}", "--no-isolation", "--outdir", str(target)]
    command = [sys.executable, "-m", "build", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_ours_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"knnlm_store-{PROJECT['version']}.dist-info"
        assert {name.split("/")[0] for name in names} == {*OURS, info}
        assert {f"{package}/py.typed" for package in OURS} <= set(names)
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
        points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert "knnlm-store = knnlm_store.__main__:main" in points
    assert "[knnlm_store.backends]" in points
    assert "faiss = knnlm_store_faiss:FaissBackend" in points
    assert "License-Expression: Apache-2.0" in metadata
    for extra in ("faiss", "qdrant", "milvus", "transformers", "data", "all"):
        assert f"Provides-Extra: {extra}" in metadata
    sources = {
        name.removeprefix("adapters/")
        for folder in ("knnlm_store", *ADAPTERS)
        for name in map(str, (p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py")))
    }
    assert sources == {name for name in names if name.endswith(".py")}


def test_source_distribution(tmp_path: Path) -> None:
    archive = build("sdist", tmp_path)
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints-dev.txt",
        "PKG-INFO",
        "knnlm_store/py.typed",
        "knnlm_store/cli/main.py",
        "adapters/knnlm_store_faiss/backend.py",
        "tests/conftest.py",
        "demo/run.py",
        "deploy/Dockerfile",
    }
    assert needed <= names
    top = {name.split("/")[0] for name in names}
    assert top <= {*(n.split("/")[0] for n in needed), "benchmarks", "docs", ".gitignore", ""}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


# -- the wheel alone ------------------------------------------------------------------------------


def pip(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run(
        [*map(str, command), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment: PyPI's `adapters` first, then the wheel over it."""
    place = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    reached = pip(python, "--no-deps", "adapters")
    if reached.returncode:
        pytest.skip(f"the package registry cannot be reached: {reached.stderr.strip()[-300:]}")
    done = pip(python, wheel)
    assert done.returncode == 0, done.stderr
    return python.parent


def command(alone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KNNLM"))}
    return subprocess.run(
        [alone / "knnlm-store", *arguments],
        cwd=alone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_adapters_of_others_are_untouched(alone: Path) -> None:
    (record,) = alone.parent.glob("lib/python*/site-packages/adapters-*.dist-info/RECORD")
    checked = 0
    with record.open(newline="") as rows:
        for name, digest, _ in csv.reader(rows):
            if digest:
                kind, _, expected = digest.partition("=")
                content = (record.parent.parent / name).read_bytes()
                found = base64.urlsafe_b64encode(hashlib.new(kind, content).digest())
                assert found.rstrip(b"=").decode() == expected, name
                checked += 1
    assert checked > 50
    ours = next(record.parent.parent.glob("knnlm_store-*.dist-info/RECORD")).read_text()
    assert not [line for line in ours.splitlines() if line.startswith("adapters/")]


def test_wheel_alone_works(alone: Path) -> None:
    installed = {path.name for path in alone.parent.glob("lib/python*/site-packages/*")}
    assert not installed & {"torch", "transformers", "faiss", "pyarrow"}
    assert command(alone, "--version").stdout == f"{PROJECT['version']}\n"
    told = command(alone, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "Usage: knnlm-store" in told.stdout
    listed = command(alone, "ls", "memory:")
    assert (listed.returncode, listed.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "library", "extra"),
    [
        (("info", "faiss:stores/law"), "faiss", "faiss"),
        (("ls",), "faiss", "faiss"),
        (("eval", "--store", "faiss:stores/law", "--model", "m", "."), "torch", "transformers"),
    ],
)
def test_wheel_alone_names_the_extra(
    alone: Path, arguments: tuple[str, ...], library: str, extra: str
) -> None:
    done = command(alone, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: {library} is not installed.",
        f"Run: pip install 'knnlm-store[{extra}]'",
    ]


# -- the Python names ------------------------------------------------------------------------------

LAZY = """
import sys
import knnlm_store
assert not {"numpy", "torch", "faiss"} & set(sys.modules)
from knnlm_store import Datastore, Fixed, Mixture, __version__
assert "torch" not in sys.modules
assert Mixture(k=1, temperature=1.0, policy=Fixed(0.5)).policy.lmbda == 0.5
try:
    from knnlm_store import Nonsense
except ImportError as error:
    print(error)
"""


def test_names_are_imported_on_first_use() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LAZY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot import name 'Nonsense' from 'knnlm_store'")


def test_every_name_is_there_and_documented() -> None:
    assert knnlm_store.__version__ == PROJECT["version"]
    assert knnlm_store.Fixed is FixedAtHome
    assert set(knnlm_store.__all__) <= set(dir(knnlm_store))
    for name in knnlm_store.__all__:
        thing = getattr(knnlm_store, name)
        assert thing.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        knnlm_store.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """Else mypy would take a name that only __getattr__ knows for Any, or for missing."""
    tree = ast.parse(Path(knnlm_store.__file__).read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: (node.module or "").removeprefix("knnlm_store.")
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == knnlm_store._HOMES  # type: ignore[attr-defined]
    assert {*seen, "__version__"} == set(knnlm_store.__all__)
    assert get_type_hints(knnlm_store.KnnLM.use)["return"]
