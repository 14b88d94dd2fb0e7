"""The process of `build`: `python optimise.py FOLDER` optimises a shard that nobody else uses.

Imports nothing but the engine, so that it starts at once. Ends when its stdin is closed.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys

import qdrant_edge as edge

_NICENESS = 10


def _end_with_parent() -> None:
    """Have the system end this process when stdin closes; no thread of ours would get to run."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit("The engine ended.")  # before there was anything to tell of it


def main(folder: str) -> None:
    """Optimise the shard in `folder` as its configuration says, and tell whether it changed."""
    _end_with_parent()
    os.nice(_NICENESS)
    shard = edge.EdgeShard.load(folder)
    optimized = shard.optimize()
    shard.close()
    sys.stdout.write("optimized" if optimized else "nothing to do")


if __name__ == "__main__":
    main(sys.argv[1])
