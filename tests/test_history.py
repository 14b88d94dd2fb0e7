"""Runs on record that no datastore writes: told, and shown as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knnlm_store import history
from knnlm_store.errors import StoreCorrupt
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Spec
from tests.bundle_support import store_at
from tests.cli_support import run
from tests.faulty import PLACE


@pytest.mark.parametrize(
    "change",
    [
        {"at": "today"},
        {"at": float("nan")},
        {"at": 1e300},
        {"what": 5},
        {"what": "\ud800"},
        {"seconds": "a"},
        {"seconds": float("inf")},
        {"counts": [1]},
        {"counts": {"added": "1"}},
        {"counts": {"added": 10**400}},
    ],
)
def test_runs_that_nobody_writes(change: dict[str, Any]) -> None:
    backend = MemoryBackend.connect(PLACE)
    backend.create(Spec(4), {})
    run = {"at": 1.0, "what": "ingest", "seconds": 1.0, "counts": {"added": 1}}
    backend.put_records({"history/1": json.dumps(run | change).encode()})
    with pytest.raises(StoreCorrupt, match="'history/1' cannot be read"):
        history.runs(backend)


def test_hostile_names_stay_in_their_line(tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/law"
    with store_at(uri) as store:
        history.note(store.backend, "\x1b[31m", 1.0, **{"red\nx": 3})
    (line,) = run("history", uri).out.splitlines()
    assert r"\x1b[31m" in line
    assert line.endswith(r"3 red\nx (1 s)")
