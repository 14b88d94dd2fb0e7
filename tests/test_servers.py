"""Tests against a server elsewhere: how it is named, and that they do run there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults_servers import EngineProcess, running
from tests.servers import MILVUS, QDRANT, elsewhere

KEY = "key-of-an-engine"
PYTEST = (sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q")
SOME = "test_names_lists_what_exists or test_put_replaces or test_empty_store"


@pytest.mark.parametrize("variable", [QDRANT, MILVUS])
def test_a_server_is_named_in_several_ways(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {QDRANT: "qdrant", MILVUS: "milvus"}[variable]
    for given, root in {
        "": "",
        "http://h:1": f"{own}://h:1",
        "https://h:1/": f"{own}s://h:1",
        f"{own}://h:1/path/": f"{own}://h:1/path",
        f"{own}s://h:1": f"{own}s://h:1",
    }.items():
        monkeypatch.setenv(variable, given)
        assert elsewhere(variable) == root
    for wrong in ("h:1", "faiss:stores", "ftp://h:1"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(ValueError, match=f"write {own}://HOST:PORT"):
            elsewhere(variable)


def test_the_contract_runs_elsewhere(tmp_path: Path) -> None:
    """Some of it, on an engine that stands alone."""
    with running(EngineProcess(tmp_path / "engine", KEY)) as server:
        done = subprocess.run(
            [*PYTEST, "tests/test_qdrant_contract.py", "-k", f"TestElsewhere and ({SOME})"],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {QDRANT: f"http://{server.address}/", "KNNLM_QDRANT_API_KEY": KEY},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
    assert (tmp_path / "engine" / ".knnlm-store-engine").exists()
