"""What importing the core brings in, and in which direction its modules import each other."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "datasets", "pyarrow", "gguf", "accelerate"}
VENDORS = {"faiss", "qdrant_client", "pymilvus"}
MAY_IMPORT_TORCH = {
    f"knnlm_store.{name}"
    for name in (
        *("keys", "models", "ingest", "estimate", "generation", "evaluation"),
        *("blending", "explaining", "keyspace", "mixing", "outputs", "scoring"),
        *("tuning.cache", "tuning.choice", "tuning.families", "tuning.learn", "tuning.tune"),
        "tuning.pooling",
    )
}
"""The modules that run a model, or are of no use without one."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "knnlm_store").rglob("*.py"))}
LIGHT = [name for name in MODULES if name not in MAY_IMPORT_TORCH]

IMPORT_EACH = """
import importlib, json, sys
watched, seen = set(json.loads(sys.argv[1])), {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    seen[name] = sorted(watched & set(sys.modules))
print(json.dumps(seen))
"""


def brought_in(modules: list[str], watched: set[str]) -> dict[str, list[str]]:
    """Import the modules in a fresh process; which of `watched` are there after each."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH, json.dumps(sorted(watched))]
    run = subprocess.run(
        [*command, *modules], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    seen: dict[str, list[str]] = json.loads(run.stdout)
    return seen


def test_core_brings_in_no_model_and_no_vendor() -> None:
    for name, heavy in brought_in(LIGHT, HEAVY | VENDORS).items():
        assert heavy == [], f"{name} brings in {heavy}"


def test_every_module_imports_and_none_brings_in_a_vendor() -> None:
    pytest.importorskip("torch")
    for name, vendors in brought_in(list(MODULES), VENDORS).items():
        assert vendors == [], f"{name} brings in {vendors}"


def test_command_line_answers_without_a_model() -> None:
    """`--help` must not take the seconds that torch takes."""
    assert brought_in(["knnlm_store.cli.main"], HEAVY) == {"knnlm_store.cli.main": []}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inside)


GRAPH = {name: set(imports_of(path)) & set(MODULES) for name, path in MODULES.items()}


def test_no_import_cycle() -> None:
    order = list(TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert order.index("knnlm_store.errors") < order.index("knnlm_store.backend")


@pytest.mark.parametrize(
    ("module", "may_import"),
    [
        ("errors", set()),
        ("values", {"errors"}),
        ("abilities", {"values"}),
        ("backend", {"abilities", "errors", "values"}),
        ("exact", {"values"}),
    ],
)
def test_foundation_imports_nothing_above_it(module: str, may_import: set[str]) -> None:
    assert GRAPH[f"knnlm_store.{module}"] <= {f"knnlm_store.{name}" for name in may_import}


def test_only_the_command_line_imports_the_command_line() -> None:
    def is_cli(name: str) -> bool:
        return name.startswith(("knnlm_store.cli", "knnlm_store.__main__"))

    for name, imported in GRAPH.items():
        assert is_cli(name) or not any(map(is_cli, imported)), name
