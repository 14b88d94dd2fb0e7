"""HTTP/1.1 on the loopback, with nothing but the standard library."""

from __future__ import annotations

import errno
import hmac
import socket
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic_core import to_json

from knnlm_store_qdrant.engine.node import Node
from knnlm_store_qdrant.engine.refusal import WAL_FULL, Refused, failed
from knnlm_store_qdrant.engine.routes import VERSION, answer

LIMIT = 32 << 20
"""Bytes of the largest request: Qdrant's own limit."""

_PROBES = {"/healthz": "healthz", "/readyz": "readyz", "/livez": "livez"}
_CHUNK = 1 << 20
_STOP_SECONDS = 20.0


class Server(ThreadingHTTPServer):
    """Serves a node on 127.0.0.1. api_key: what requests must carry, if not empty."""

    daemon_threads = True
    block_on_close = False  # connections idle on; requests are waited for below
    request_queue_size = 128

    def __init__(self, node: Node, port: int, api_key: str) -> None:
        self.node, self.api_key = node, api_key.encode()
        self._idle = threading.Condition()
        self._busy = 0
        self._closing = False
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server for the name of 127.0.0.1."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def enter(self) -> bool:
        """Count a request in; False once the server is closing."""
        with self._idle:
            self._busy += not self._closing
            return not self._closing

    def leave(self) -> None:
        """Count a request out."""
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()

    def finish(self) -> None:
        """Refuse new requests, let those in work end, and close the node."""
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: not self._busy, _STOP_SECONDS)
        self.server_close()
        self.node.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about connections that broke; what else fails is a bug to see."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body

    def _serve(self) -> None:
        started = time.perf_counter()
        if not self.server.enter():
            self.close_connection = True
            return
        try:
            status, reply, kind = self._reply(started)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(reply)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply)
            self.wfile.flush()
        finally:
            self.server.leave()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815  named by the library

    def _reply(self, started: float) -> tuple[int, bytes, str]:
        """Make status, body and type of the reply."""
        status, shown = 200, {}
        try:
            body = self._body()
            parts = urlsplit(self.path)
            if parts.path in _PROBES:
                return 200, f"{_PROBES[parts.path]} check passed".encode(), "text/plain"
            if parts.path == "/":
                return 200, to_json(VERSION), "application/json"
            self._check_key()
            query = dict(parse_qsl(parts.query))
            result = answer(self.server.node, self.command, parts.path, query, body)
            shown = {"result": result, "status": "ok"}
        except Refused as refusal:
            status, shown = refusal.status, {"status": {"error": str(refusal)}}
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            status = 500
            shown = {"status": {"error": str(failed(WAL_FULL if full else str(error)))}}
        except BaseException as error:  # noqa: BLE001  a panic of the engine is none of Exception
            traceback.print_exc()
            status = 500
            shown = {"status": {"error": f"Service internal error: {type(error).__name__}"}}
        shown["time"] = time.perf_counter() - started
        return status, to_json(shown), "application/json"

    def _check_key(self) -> None:
        expected, given = self.server.api_key, self.headers.get("api-key", "").encode()
        if expected and not given:
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        if expected and not hmac.compare_digest(expected, given):
            raise Refused(401, "Invalid API key or JWT")

    def _body(self) -> bytes:
        """Read the request's body, or read it away if it is too large."""
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise Refused(411, "The embedded engine takes requests with a Content-Length only.")
        length = int(self.headers.get("Content-Length") or 0)
        if length <= LIMIT:
            return self.rfile.read(length)
        left = length
        while left and (chunk := self.rfile.read(min(left, _CHUNK))):
            left -= len(chunk)
        raise Refused(
            400,
            f"Payload error: JSON payload ({length} bytes) is larger than allowed "
            f"(limit: {LIMIT} bytes).",
        )

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  named by the library
        """Write no log: requests hold private text."""
