"""A server before the embedded engine that passes on, remembers and misbehaves."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from knnlm_store.values import Location
from knnlm_store_qdrant.engine import Endpoint


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came over the wire."""

    method: str
    path: str
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Reply = tuple[int, bytes]
Change = Callable[[Asked, Reply], Reply | None]


def _as_it_is(asked: Asked, reply: Reply) -> Reply | None:
    return reply


@dataclass
class Front:
    """A server that passes requests on to an engine, remembers them, and can misbehave.

    before: gets each request, and tells whether to pass it on or to break the connection.
    change: gets it with its reply, and gives another reply, or None to break the connection.
    """

    endpoint: Endpoint
    url: str = ""
    log: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    change: Change = _as_it_is
    before: Callable[[Asked], bool] = bool
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def root(self) -> str:
        return self.url.partition("//")[2]

    def location(self, name: str, scheme: str = "qdrant") -> Location:
        return Location(scheme, self.root, name, network=True)

    def lines(self, *methods: str) -> list[str]:
        """The requests so far, without the query string."""
        return [asked.line for asked in self.log if not methods or asked.method in methods]

    def pass_on(self, asked: Asked, headers: Mapping[str, str]) -> Reply | None:
        """Ask the engine; None to break the connection."""
        with self._lock:
            self.log.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if not self.before(asked):
                return None
            engine = http.client.HTTPConnection(self.endpoint.url.partition("//")[2], timeout=60)
            kept = {k: v for k, v in headers.items() if k.lower() in ("api-key", "content-type")}
            engine.request(asked.method, asked.path, asked.body, kept)
            response = engine.getresponse()
            reply = self.change(asked, (response.status, response.read()))
            engine.close()
            return reply
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def fronted(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> Iterator[Front]:
    """Serve a front on a port of its own."""
    front = Front(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {
                k: v for k, v in self.headers.items() if k.lower() in ("api-key", "content-type")
            }
            reply = front.pass_on(Asked(self.command, self.path, body), kept)
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply[1])))
            self.end_headers()
            self.wfile.write(reply[1])

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # the adapter hangs up where it must

    server = Quiet(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    front.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself; gives it and its key."""
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    asked = f"""openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2
        -subj /CN={name} -addext subjectAltName=IP:127.0.0.1
        -addext keyUsage=critical,digitalSignature,keyCertSign"""
    files = ["-keyout", str(key), "-out", str(made)]
    subprocess.run([*asked.split(), *files], check=True, capture_output=True)
    return made, key
