"""A Qdrant server as this adapter calls it: with a deadline, and with our errors."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from qdrant_client import QdrantClient

from knnlm_store.errors import UsageError
from knnlm_store.values import Location
from knnlm_store_qdrant.access import Access, timeout_of
from knnlm_store_qdrant.engine.child import Endpoint, acquire
from knnlm_store_qdrant.failures import mapped
from knnlm_store_qdrant.transport import Punctual, deadline

_BLOCK = 512  # bytes in which a file system counts


class Server:
    """A server, or a folder with the embedded engine; threads may share it.

    place: what messages call it.
    """

    def __init__(self, place: str, client: QdrantClient | None, timeout: float = 30.0) -> None:
        """Take a client that is ready for use; `close` closes it."""
        self.place, self.timeout = place, timeout
        self._client = client
        self._secret: str | None = None

    @contextmanager
    def calling(self, until: float | None = None) -> Iterator[QdrantClient]:
        """Give the client for one call; errors in the block become a StoreError.

        until: when the call must be over, by time.monotonic(); by default after `timeout`.
        """
        until = time.monotonic() + self.timeout if until is None else until
        with deadline(until), mapped(self.place, self._secret):
            yield self._ready()

    def exists(self) -> bool:
        """Whether there is anything to connect to; asks nobody over a network."""
        return True

    def size(self, collections: Sequence[str]) -> int | None:
        """Count the bytes that collections take on disk; None if this machine cannot see them."""
        return None

    def close(self) -> None:
        """Release what is held; a later call takes it again."""
        if self._client is not None:
            self._client.close()

    def _ready(self) -> QdrantClient:
        assert self._client is not None
        return self._client


class _Network(Server):
    """A server somewhere else."""

    def __init__(self, access: Access) -> None:
        super().__init__(access.place, None, access.timeout)
        self._access, self._secret = access, access.api_key
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            super().close()
            self._client = None

    def _ready(self) -> QdrantClient:
        with self._lock:
            if self._client is None:
                self._client = _client(self._access)
            return self._client


class _Embedded(Server):
    """Qdrant's engine in a child process that has a folder.

    It is started by the first call, and again should it have died; a folder that is not there is
    made by the first write.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        super().__init__(str(folder), None, timeout)
        self._folder = folder
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._url = ""

    def exists(self) -> bool:
        return self._folder.is_dir()

    def size(self, collections: Sequence[str]) -> int | None:
        return sum(
            _bytes_in(about.parent)
            for about in self._folder.glob("collections/*/collection.json")
            if json.loads(about.read_text(encoding="utf-8")).get("name") in collections
        )

    def close(self) -> None:
        with self._lock:
            super().close()
            if self._endpoint is not None:
                self._endpoint.release()
            self._client = self._endpoint = None

    def _ready(self) -> QdrantClient:
        with self._lock:
            if self._endpoint is None:
                self._endpoint = acquire(self._folder)
            self._endpoint.restart_if_dead()
            if self._client is None or self._url != self._endpoint.url:
                self._url = self._endpoint.url
                self._client = _client(Access(self._url, self.timeout, self._endpoint.api_key))
            return self._client


def opened(location: Location) -> Server:
    """Reach for the server of a location; nothing is asked of it yet. Raises UsageError."""
    if location.network:
        return _Network(Access.of(location))
    if location.scheme == "qdrants":
        raise UsageError(
            "qdrants: is for servers; the embedded engine needs no TLS.",
            hint=f"Write qdrants://HOST:PORT/{location.name}, or qdrant:{location.root}.",
        )
    return _Embedded(Path(location.root or ".").absolute(), timeout_of(os.environ))


def _bytes_in(folder: Path) -> int:
    """Count what files take, which is less than their length; some may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_blocks * _BLOCK
    return total


def _client(access: Access) -> QdrantClient:
    return QdrantClient(
        url=access.url,
        timeout=max(1, round(access.timeout)),
        # not as `api_key`: there the client warns of plain HTTP, in its own way
        headers={"api-key": access.api_key} if access.api_key else None,
        check_compatibility=False,  # that is a thread of its own which warns; `doctor` tells
        transport=Punctual(access.tls),
    )
