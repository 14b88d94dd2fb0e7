"""Index building, in a process of its own: the engine does nothing else meanwhile.

The engine holds Python's lock while it optimises, minutes for a large collection, so a server
that built its own indexes would be deaf. `build` runs `optimise.py` on a copy of the
collection's files, or has it fill new ones from the copy, and waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import qdrant_edge as edge

_PROGRAM = Path(__file__).with_name("optimise.py")


def build(
    folder: Path,
    configuration: edge.EdgeConfig,
    go_on: Callable[[], bool],
    source: Path | None = None,
) -> bool | None:
    """Optimise the files in `folder`; was there anything to do? None if told to stop.

    source: files whose points are to be put into new ones, in `folder`, first. Raises
    RuntimeError if the process failed, OSError if it could not be started.
    """
    # -P: neither the modules beside the program nor those where the user happens to be.
    command = [sys.executable, "-P", str(_PROGRAM), str(folder)]
    if source is None:
        what, shard = "building the index", edge.EdgeShard.load(str(folder), configuration)
    else:
        what, shard = "compacting", edge.EdgeShard.create(str(folder), configuration)
        command.append(str(source))
    shard.close()  # which keeps the configuration there
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            return _watched(process, go_on, errors, what)
        finally:
            process.kill()
            process.communicate()


def _watched(
    process: subprocess.Popen[bytes], go_on: Callable[[], bool], errors: IO[bytes], what: str
) -> bool | None:
    assert process.stdout is not None
    while True:
        try:
            code = process.wait(0.05)
            break
        except subprocess.TimeoutExpired:
            if not go_on():
                return None
    if code:
        raise RuntimeError(f"{what} failed with status {code}: {last_line(errors)}")
    return process.stdout.read() == b"optimized"


def last_line(messages: IO[bytes]) -> str:
    """Read the last line of what a process wrote into a file."""
    size = os.fstat(messages.fileno()).st_size
    end = os.pread(messages.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
    return next((line for line in reversed(end.splitlines()) if line.strip()), "no message")
