"""Engines in child processes and data for them, for the tests of the embedded Qdrant engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http import models
from qdrant_client.http.exceptions import UnexpectedResponse

from knnlm_store.values import Float32, Int64
from knnlm_store_qdrant.engine import Endpoint, acquire

DIMENSION = 16
Engine = tuple[Endpoint, QdrantClient]
PRELUDE = """
import os, signal, sys, time
from knnlm_store.errors import *
from tests.qdrant_engine_support import *
"""
ROOT = Path(__file__).parent.parent


def client_of(endpoint: Endpoint) -> QdrantClient:
    return QdrantClient(
        url=endpoint.url,
        headers={"api-key": endpoint.api_key},
        timeout=60,
        check_compatibility=False,
        trust_env=False,
    )


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[tuple[Endpoint, QdrantClient]]:
    endpoint = acquire(folder)
    client = client_of(endpoint)
    try:
        yield endpoint, client
    finally:
        client.close()
        endpoint.release()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with opened(tmp_path_factory.mktemp("engine") / "store") as pair:
        yield pair


@pytest.fixture
def client(engine: Engine) -> QdrantClient:
    return engine[1]


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def http(engine: Engine) -> Iterator[httpx.Client]:
    headers = {"api-key": engine[0].api_key}
    with httpx.Client(base_url=engine[0].url, headers=headers, trust_env=False) as raw:
        yield raw


def refusal(status: int, words: str) -> Any:
    """Expect a reply of this status that holds these words."""

    def fits(error: BaseException) -> bool:
        assert isinstance(error, UnexpectedResponse)
        assert error.status_code == status
        said = json.loads(error.content)["status"]["error"]
        assert words in said, said
        return True

    return pytest.raises(UnexpectedResponse, check=fits)


def clustered(count: int, seed: int, dimension: int = DIMENSION) -> Float32:
    """Keys in some dozens of clumps, the same ones for every seed."""
    centres = np.random.default_rng(0).normal(0, 2.0, (40, dimension))
    random = np.random.default_rng(seed)
    keys = centres[random.integers(0, 40, count)] + random.normal(0, 1.0, (count, dimension))
    return keys.astype(np.float32)


def create(client: QdrantClient, name: str, *, threshold: int = 0, **options: Any) -> None:
    """Make a collection with an index on `d`."""
    dimension = options.pop("dimension", DIMENSION)
    vectors = {"datatype": options.pop("datatype", None), "on_disk": options.pop("on_disk", None)}
    client.create_collection(
        name,
        vectors_config=models.VectorParams(
            size=dimension, distance=models.Distance.EUCLID, **vectors
        ),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=threshold),
        **options,
    )
    client.create_payload_index(name, "d", models.PayloadSchemaType.INTEGER, wait=True)


def put(client: QdrantClient, name: str, keys: Float32, first: int = 0, token: int = 0) -> None:
    """Upsert keys under ids from `first` on; `d` is the id's hundreds."""
    numbers = range(first, first + len(keys))
    ids: list[int | str | uuid.UUID] = list(numbers)
    payloads: list[dict[str, Any]] = [{"d": i // 100, "t": token + i} for i in numbers]
    batch = models.Batch(ids=ids, vectors=keys.tolist(), payloads=payloads)
    client.upsert(name, batch, wait=True)


def fill(client: QdrantClient, name: str, keys: Float32, batch: int = 1000) -> None:
    for start in range(0, len(keys), batch):
        put(client, name, keys[start : start + batch], start)


def held(client: QdrantClient, name: str, **options: Any) -> dict[Any, dict[str, Any]]:
    """Payload of each point by id, read in pages."""
    found: dict[Any, dict[str, Any]] = {}
    offset = None
    while True:
        points, offset = client.scroll(name, limit=700, offset=offset, **options)
        found |= {point.id: point.payload or {} for point in points}
        if offset is None:
            return found


def nearest(keys: Float32, query: Float32, k: int, ids: Int64 | None = None) -> list[int]:
    """Brute force: ids of the k nearest of the keys (those of `ids`)."""
    ids = np.arange(len(keys)) if ids is None else ids
    distances = ((keys[ids] - query) ** 2).sum(1)
    return [int(i) for i in ids[np.argsort(distances, kind="stable")[:k]]]


def until_green(client: QdrantClient, name: str, seconds: float = 60) -> models.CollectionInfo:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        info = client.get_collection(name)
        if info.status == models.CollectionStatus.GREEN:
            return info
        assert info.status == models.CollectionStatus.YELLOW, info.optimizer_status
        time.sleep(0.05)
    raise AssertionError(f"{name} did not turn green")


def index(client: QdrantClient, name: str) -> models.CollectionInfo:
    """Have every vector indexed."""
    client.update_collection(
        name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1)
    )
    return until_green(client, name)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python with the tests' names at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def alone(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run the engine as a program of its own: the process and what it said."""
    command = [sys.executable, "-m", "knnlm_store_qdrant.engine", str(folder), *options]
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def kill(endpoint: Endpoint) -> None:
    """Kill the engine and see that it is noticed."""
    assert endpoint.poll() is None
    assert endpoint.pid is not None
    os.kill(endpoint.pid, signal.SIGKILL)
    until(lambda: endpoint.poll() is not None, "end")
    assert endpoint.poll() == -signal.SIGKILL


def files(folder: Path) -> list[Path]:
    return list(folder.glob("collections/*/files-*"))


def builders(endpoint: Endpoint) -> list[int]:
    """Processes that the engine has started."""
    children = Path(f"/proc/{endpoint.pid}/task").glob("*/children")
    return [int(pid) for file in children for pid in file.read_text().split()]
