"""HTTP with one deadline for a whole call: connecting, writing, and every byte of the reply.

The timeouts of the HTTP client are for each operation of the socket, and a server that drips a
byte now and then never meets one. Here each of them gets what is left of the call.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

_KEPT, _MOST = 8, 32  # connections
_PIECE = 1 << 16  # bytes written at once

_until: ContextVar[float] = ContextVar("_until")
"""When the call that is under way must be over, by time.monotonic()."""


@contextmanager
def deadline(until: float) -> Iterator[None]:
    """Hold the calls in the block to `until`, by time.monotonic(); for this thread only."""
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


class Punctual(httpx.HTTPTransport):
    """Sends requests, and raises httpx's timeouts at the deadline."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        """Trust what `tls` does; None where TLS is not spoken."""
        # without TLS there is nothing to verify, and reading all certificates takes a while
        super().__init__(verify=False if tls is None else tls)
        self._pool.close()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=_MOST,
            max_keepalive_connections=_KEPT,
            keepalive_expiry=5.0,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; `pool` is the wait for a connection, the rest is held below."""
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = dict.fromkeys(names, _left(None))
        return super().handle_request(request)


class _Backend(httpcore.NetworkBackend):
    """Makes connections that keep to the deadline."""

    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        made = self._plain.connect_tcp(host, port, _left(timeout), local_address, socket_options)
        return _Stream(made)


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation has what is left of the call."""

    def __init__(self, plain: httpcore.NetworkStream) -> None:
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        _require_time(httpcore.ReadTimeout)
        return self._plain.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            _require_time(httpcore.WriteTimeout)
            self._plain.write(buffer[start : start + _PIECE], _left(timeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._plain.start_tls(ssl_context, server_hostname, _left(timeout)))

    def close(self) -> None:
        self._plain.close()

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


def _left(timeout: float | None) -> float:
    """Seconds that are left of the call, `timeout` at most."""
    left = max(0.001, _until.get() - time.monotonic())
    return left if timeout is None else min(timeout, left)


def _require_time(kind: type[httpcore.TimeoutException]) -> None:
    """Raise `kind` after the deadline."""
    if time.monotonic() > _until.get():
        raise kind("the call took too long")
