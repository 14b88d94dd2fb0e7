"""Proxies that spoil what a server replies: cut, late, never, unparsable, of another shape, short.

What they make of a reply can always be told from a true one. A valid reply that says something
else (a page without one of its points) could be told by nobody.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

TRANSIENT = ("cut", "late", "hang", "refuse")
"""Faults after which the same call may succeed."""
FALSE = ("garbage", "shape", "short")
FAULTS = (*TRANSIENT, *FALSE)
LATE = 0.05
_HOP = ("connection", "transfer-encoding")


def passing(_: str) -> str:
    return "pass"


@dataclass
class Moods:
    """What a proxy does next, and what it did.

    mood: asked once a reply, with the request's path; "pass" lets the reply through. asked: called
    before a request is passed on. address: what to connect to instead of the server.
    """

    mood: Callable[[str], str] = passing
    asked: Callable[[str], object] = passing
    done: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def next(self, path: str) -> str:
        mood = self.mood(path)
        self.done[mood] += 1
        return mood


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass  # whoever asked has given up


@contextmanager
def http_proxy(upstream: str) -> Iterator[Moods]:
    """Stand before an HTTP server, `HOST:PORT`."""
    moods, target = Moods(), urlsplit(f"http://{upstream}")
    served = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            moods.asked(self.path)
            try:
                status, content = self._passed_on(body)
            except (OSError, http.client.HTTPException):
                self.close_connection = True  # the server is down: so is what stands before it
                return
            self._answer(moods.next(self.path), status, content)

        def _passed_on(self, body: bytes) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            try:
                connection.request(self.command, self.path, body, headers)
                reply = connection.getresponse()
                return reply.status, reply.read()
            finally:
                connection.close()

        def _answer(self, mood: str, status: int, content: bytes) -> None:
            if mood == "hang":
                moods.over.wait()
                self.close_connection = True
                return
            if mood == "late":
                time.sleep(LATE)
            if mood == "refuse":
                status, content = 503, b'{"status":{"error":"try later"},"time":0}'
            content = spoiled_json(mood, content, next(served))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if mood == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815

    server = _Quiet(("127.0.0.1", 0), Handler)
    moods.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield moods
    finally:
        moods.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


_SHAPES = (
    b'{"result":{"unexpected":[1,2,3]},"status":"ok","time":0.1}',
    b'{"result":null,"status":"ok","time":0.1}',
    b'{"status":"ok","time":0.1}',
    b'{"result":"ok"}',
    b"[]",
    b"null",
    b"",
)


def spoiled_json(mood: str, content: bytes, number: int = 0) -> bytes:
    """Give other content, of the length that is announced; `number` chooses among several."""
    if mood == "garbage":
        return (b'{"result": [{"id": \xff\x00 ' + content[20:60], content[: len(content) // 2])[
            number % 2
        ]
    if mood == "shape":
        return _SHAPES[number % len(_SHAPES)]
    if mood == "short":
        value = json.loads(content)
        return json.dumps(value | {"result": _shorter(value.get("result"))}).encode()
    return content


def _shorter(value: Any) -> Any:
    """Leave out one answer of several, or the last part of the last thing that has parts."""
    if isinstance(value, list) and value:
        last = value[-1]
        if isinstance(last, dict) and "points" not in last:
            return [*value[:-1], _shorter(last)]
        return value[:-1]
    if isinstance(value, dict) and value:
        with_parts = [
            name for name in value if value[name] and isinstance(value[name], list | dict)
        ]
        if with_parts:
            return value | {with_parts[-1]: _shorter(value[with_parts[-1]])}
        return dict(list(value.items())[:-1])
    return None


@contextmanager
def grpc_proxy(upstream: str, tls: tuple[Path, Path] | None = None) -> Iterator[Moods]:
    """Stand before a gRPC server of single calls, `HOST:PORT`.

    tls: files of the certificate that it shows, and of its key.
    """
    moods, served = Moods(), count()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    again = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    channel = grpc.insecure_channel(upstream, options=[*options, *again])

    class Forward(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: self._call(details.method, request, context)
            )

        def _call(self, method: str, request: bytes, context: Any) -> bytes:
            moods.asked(method)
            metadata = [m for m in context.invocation_metadata() if not m[0].startswith("grpc-")]
            try:
                reply: bytes = channel.unary_unary(method)(
                    request, metadata=metadata, timeout=context.time_remaining() or 60
                )
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise
            mood = moods.next(method)
            while mood == "hang" and context.is_active() and not moods.over.wait(0.02):
                pass
            if mood == "late":
                time.sleep(LATE)
            if mood in ("cut", "refuse", "hang"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was cut")
            return spoiled_message(mood, method, reply, next(served))

    server = grpc.server(ThreadPoolExecutor(32), options=options)
    server.add_generic_rpc_handlers((Forward(),))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        chain, key = (file.read_bytes() for file in tls)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    moods.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield moods
    finally:
        moods.over.set()
        server.stop(None).wait()
        channel.close()


def spoiled_message(mood: str, method: str, reply: bytes, number: int = 0) -> bytes:
    """Give another message: no protobuf, an empty one or part of one, or one with fields left out.

    A call that tells no more than that it went well has no shape to lose, and is left alone.
    """
    if mood == "garbage":
        return b"\xff\xff\xff" + reply[:20]
    tells = method.endswith(("/Search", "/Query", "/DescribeCollection"))
    if mood == "shape" and tells:
        return (b"", reply[: len(reply) // 2])[number % 2]
    if mood == "short" and method.endswith(("/Search", "/Query")):
        return _short_message(method, reply)
    return reply


def _short_message(method: str, reply: bytes) -> bytes:
    """Leave out the last field of the rows."""
    from pymilvus.grpc_gen import milvus_pb2

    kind = milvus_pb2.SearchResults if method.endswith("/Search") else milvus_pb2.QueryResults
    message = kind.FromString(reply)
    fields = (message.results if method.endswith("/Search") else message).fields_data
    with suppress(IndexError):
        del fields[-1]
    return bytes(message.SerializeToString())
