"""Places of real engines, for tests and benchmarks: the address in the environment, or our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.milvus_server import TOKEN, started

QDRANT, MILVUS = "KNNLM_TEST_QDRANT_URL", "KNNLM_TEST_MILVUS_URI"


def elsewhere(variable: str) -> str:
    """Root SCHEME://HOST:PORT of the server that QDRANT or MILVUS names; "" if none.

    http:// and https:// are taken as well as the backend's own scheme, with an s for TLS. Raises
    ValueError for anything else.
    """
    scheme = {QDRANT: "qdrant", MILVUS: "milvus"}[variable]
    given = os.environ.get(variable, "").rstrip("/")
    if not given:
        return ""
    spoken, separator, place = given.partition("://")
    schemes = {"http": scheme, "https": f"{scheme}s", scheme: scheme, f"{scheme}s": f"{scheme}s"}
    if not separator or spoken not in schemes:
        raise ValueError(f"{variable} is {given!r}; write {scheme}://HOST:PORT.")
    return f"{schemes[spoken]}://{place}"


@contextmanager
def qdrant_root(folder: Path) -> Iterator[str]:
    """Root of datastores in Qdrant: the server of KNNLM_TEST_QDRANT_URL, or the engine."""
    yield elsewhere(QDRANT) or f"qdrant:{folder}"


@contextmanager
def milvus_root() -> Iterator[str]:
    """Root of datastores in Milvus: the server of KNNLM_TEST_MILVUS_URI, or a new one."""
    if root := elsewhere(MILVUS):
        yield root
        return
    server = started()
    try:
        with patch.dict(os.environ, {"KNNLM_MILVUS_TOKEN": TOKEN}):
            yield f"milvus://{server.root}"
    finally:
        server.remove()
