"""Places of real engines, for tests and benchmarks: the address in the environment, or our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.milvus_server import TOKEN, started


@contextmanager
def qdrant_root(folder: Path) -> Iterator[str]:
    """Root of datastores in Qdrant: the server of KNNLM_TEST_QDRANT_URL, or the engine."""
    url = os.environ.get("KNNLM_TEST_QDRANT_URL", "").rstrip("/")
    yield f"qdrant:{url.partition(':')[2]}" if url else f"qdrant:{folder}"


@contextmanager
def milvus_root() -> Iterator[str]:
    """Root of datastores in Milvus: the server of KNNLM_TEST_MILVUS_URI, or a new one."""
    uri = os.environ.get("KNNLM_TEST_MILVUS_URI", "").rstrip("/")
    if uri:
        yield f"milvus:{uri.partition(':')[2]}"
        return
    server = started()
    try:
        with patch.dict(os.environ, {"KNNLM_MILVUS_TOKEN": TOKEN}):
            yield f"milvus://{server.root}"
    finally:
        server.remove()
