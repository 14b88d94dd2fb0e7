"""The engine's process: `python -m knnlm_store_qdrant.engine PATH [--port N]`.

Prints one line of JSON when it serves, `{"port": N}`, or when it cannot, `{"error": ...}`. Ends
cleanly on SIGTERM and, with --lifeline, when its stdin closes. The API key that requests must
carry is read from the environment; without one, none is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from knnlm_store_qdrant.engine.folder import Foreign, InUse
from knnlm_store_qdrant.engine.node import Node
from knnlm_store_qdrant.engine.refusal import Refused
from knnlm_store_qdrant.engine.server import Server

KEY = "KNNLM_ENGINE_API_KEY"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m knnlm_store_qdrant.engine")
    parser.add_argument("path", type=Path, help="folder of the collections")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--lifeline", action="store_true", help="end when stdin closes")
    parser.add_argument(
        "--reserve", type=int, default=64, help="MiB of the disk to leave free (default: 64)"
    )
    return parser.parse_args()


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _made(arguments: argparse.Namespace) -> Server | None:
    """Make the server, or tell why there is none."""
    api_key = os.environ.pop(KEY, "")  # processes that this one starts need not have it
    owner = os.getppid() if arguments.lifeline else os.getpid()
    try:
        node = Node(arguments.path.absolute(), owner, arguments.reserve << 20)
        return Server(node, arguments.port, api_key)
    except InUse as error:
        _say(error=str(error), kind="in use")
    except Foreign as error:
        _say(error=str(error), kind="foreign")
    except Refused as error:
        _say(error=str(error), kind="corrupt")
    except OSError as error:
        _say(error=str(error), kind="system", errno=error.errno)
    return None


def _serve(server: Server, *, lifeline: bool) -> None:
    """Serve until told to end, then end cleanly."""

    def stop(*_: Any) -> None:
        threading.Thread(target=server.shutdown).start()

    def watch() -> None:
        sys.stdin.buffer.read()
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.node.start()
    if lifeline:
        threading.Thread(target=watch, daemon=True).start()
    _say(port=server.server_port)
    server.serve_forever(poll_interval=0.1)
    server.finish()


def main() -> int:
    """Run the process."""
    arguments = _arguments()
    server = _made(arguments)
    if server is None:
        return 1
    _serve(server, lifeline=arguments.lifeline)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads may still wait for the next request of an open connection
