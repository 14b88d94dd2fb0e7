"""What Ctrl-C does to long work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_FRESH_LINE = "\r\x1b[2K\x1b[?25h"
"""Takes back the line that a progress display is drawing, and shows the cursor that it hides."""


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop cleanly; the second one ends at once."""
    asked = False

    def handle(*_: Any) -> None:
        nonlocal asked
        if asked:
            # Waits for no write or retry that is under way: a run may be killed at any instant.
            _say("Stopped. Run the same command to go on.")
            os._exit(130)
        asked = True
        _say("Stopping after the documents in hand; Ctrl-C again to stop at once.")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    """Write a line to stderr past Python's buffers, which the signal may have come in the midst of.

    A second write within one to the same buffer would be refused.
    """
    start = _FRESH_LINE if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{start}{text}\n".encode())
