"""Names that collections of others have: what the commands say and do, on servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymilvus import DataType, MilvusClient
from qdrant_client import QdrantClient, models

from tests.cli_support import run, write_corpus
from tests.faults_servers import EngineProcess, running
from tests.milvus_server import TOKEN
from tests.milvus_support import milvus_root, own_server

__all__ = ["milvus_root", "own_server"]

KEY = "of-the-foreigner"


@pytest.fixture
def in_qdrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """URI of a collection that a vendor's client made, and what is said of it; it must stay."""
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", KEY)
    with running(EngineProcess(tmp_path / "engine", KEY)) as server:
        vendor = QdrantClient(
            url=f"http://{server.address}",
            headers={"api-key": KEY},
            check_compatibility=False,
            trust_env=False,
        )
        one = models.VectorParams(size=3, distance=models.Distance.DOT)
        vendor.create_collection("law", one)
        said = f"Qdrant at {server.address} has a collection law that knnlm-store did not make."
        yield f"qdrant://{server.address}/law", said
        assert [each.name for each in vendor.get_collections().collections] == ["law"]
        vendor.close()


@pytest.fixture
def in_milvus(milvus_root: str) -> Iterator[tuple[str, str]]:
    """The same in Milvus."""
    name = f"foreign_{time.time_ns()}"
    uri = f"milvus://{milvus_root}/{name}"
    vendor = MilvusClient(f"http://{milvus_root}", token=TOKEN, timeout=30)
    schema = vendor.create_schema()
    schema.add_field("number", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=3)
    vendor.create_collection(name, schema=schema)
    yield uri, f"{uri} is a Milvus collection that knnlm-store did not make."
    assert [each for each in vendor.list_collections() if name in each] == [name]
    vendor.drop_collection(name)
    vendor.close()


@pytest.mark.parametrize("where", ["in_qdrant", "in_milvus"])
def test_commands_leave_it_alone(
    where: str, request: pytest.FixtureRequest, saved_model: Path, tmp_path: Path
) -> None:
    """An ingest says why it does not take it; for the others there is no datastore."""
    uri, said = request.getfixturevalue(where)
    options = ["--store", uri, "--model", saved_model, "--transform", "none"]
    done = run("ingest", *options, write_corpus(tmp_path / "law"))
    assert done.failure() == (1, said, "Take another name.")
    for command in (["info", uri], ["rm", "--yes", uri]):
        code, message, hint = run(*command).failure()
        assert (code, message.startswith("There is no datastore at ")) == (1, True)
        assert hint
    assert uri.rpartition("/")[2] not in run("ls", uri.rpartition("/")[0]).out
