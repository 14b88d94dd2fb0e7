"""Datastores in folders, and other processes that use them, for the tests of the FAISS adapter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from knnlm_store.values import Entries, Float32, Location, Spec
from knnlm_store_faiss import FaissBackend

DIMENSION = 16

PRELUDE = """
import os, sys
import numpy as np
from pathlib import Path
from knnlm_store.errors import *
from knnlm_store_faiss import FaissBackend
from tests.faiss_support import *
"""


class Early(FaissBackend):
    """Wants an index from the 501st entry on."""

    exact_rows = 500


def location(folder: Path) -> Location:
    return Location("faiss", str(folder.parent), folder.name)


def connect(folder: Path, kind: type[FaissBackend] = FaissBackend) -> FaissBackend:
    return kind.connect(location(folder))


def created(
    folder: Path,
    storage: str = "float16",
    dimension: int = DIMENSION,
    kind: type[FaissBackend] = FaissBackend,
) -> FaissBackend:
    store = connect(folder, kind)
    store.create(Spec(dimension, storage), {"manifest": b"m"})
    return store


def document(number: int, count: int, token: int = 0, first: int = 0) -> Entries:
    """Entries of one document with keys drawn from its number and `token`."""
    keys = np.random.default_rng([number % 2**32, token]).normal(size=(count, DIMENSION))
    return of_keys(keys.astype(np.float32), number, token, first)


def of_keys(keys: Float32, number: int = 1, token: int = 0, first: int = 0) -> Entries:
    n = len(keys)
    return Entries(
        keys,
        np.full(n, token, np.int64),
        np.full(n, number, np.int64),
        np.arange(first, first + n, dtype=np.int64),
    )


def clustered(count: int, dimension: int, seed: int, centre: float = 0.0) -> Float32:
    """Keys in some hundred overlapping clumps, the same ones for every seed."""
    centres = np.random.default_rng(0).normal(centre, 2.0, (100, dimension))
    random = np.random.default_rng(seed)
    keys = centres[random.integers(0, 100, count)] + random.normal(0, 1.0, (count, dimension))
    return keys.astype(np.float32)


def held(store: FaissBackend) -> dict[int, int]:
    """Token of each entry id."""
    found: dict[int, int] = {}
    for batch in store.scan():
        found |= dict(zip(batch.ids.tolist(), batch.tokens.tolist(), strict=True))
    return found


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python with the tests' names at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: object) -> str:
    """Run Python to its end and give back what it printed."""
    with start(script, *arguments) as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return printed
