"""The process of `build`: `python optimise.py FOLDER` optimises a shard that nobody else uses.

`python optimise.py FOLDER SOURCE` first fills it, empty, with the points of another such shard.
Imports nothing but the engine, so that it starts at once. Ends when its stdin is closed.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys

import qdrant_edge as edge

_NICENESS = 10
_PAGE = 500  # points
_FLUSHED = 100  # pages after which the log of writes may be cut


def _end_with_parent() -> None:
    """Have the system end this process when stdin closes; no thread of ours would get to run."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit("The engine ended.")  # before there was anything to tell of it


def _fill(shard: edge.EdgeShard, source: edge.EdgeShard) -> None:
    """Write every point of `source`, and have the same fields indexed."""
    for name, index in source.info().payload_schema.items():
        shard.update(edge.UpdateOperation.create_field_index(name, index.data_type))
    after, pages = None, 0
    while pages == 0 or after is not None:
        page = edge.ScrollRequest(offset=after, limit=_PAGE, with_payload=True, with_vector=True)
        found, after = source.scroll(page)
        points = [edge.Point(each.id, each.vector or {}, each.payload) for each in found]
        shard.update(edge.UpdateOperation.upsert_points(points))
        pages += 1
        if pages % _FLUSHED == 0:
            shard.flush()


def main(folder: str, source: str | None = None) -> None:
    """Optimise the shard in `folder` as its configuration says, and tell whether it changed."""
    _end_with_parent()
    os.nice(_NICENESS)
    shard = edge.EdgeShard.load(folder)
    if source is not None:
        _fill(shard, edge.EdgeShard.load(source))
    optimized = shard.optimize()
    shard.close()
    sys.stdout.write("optimized" if optimized else "nothing to do")


if __name__ == "__main__":
    main(*sys.argv[1:])
