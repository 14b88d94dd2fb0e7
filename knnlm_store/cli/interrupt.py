"""What Ctrl-C does: long work ends cleanly, anything else at once; never with a traceback."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CURSOR = "\x1b[?25h"
"""Shows the cursor, which a progress display hides."""
_FRESH_LINE = f"\r\x1b[2K{_CURSOR}"
"""Takes back the line that a progress display is drawing."""
_NEXT_LINE = f"\r\n{_CURSOR}"
"""Leaves the line as it is: it may be text that the user wants."""


def end_on_interrupt() -> None:
    """Have Ctrl-C end this process at once, with a line and exit code 130, wherever it is.

    An exception instead would be lost in, or told by, whatever library is just being imported.
    Nothing is cleaned up: a run may be killed at any instant.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, lambda *_: _end("Stopped by Ctrl-C.", _NEXT_LINE))


@contextmanager
def stop_on_interrupt(
    in_hand: Callable[[], str] = lambda: "the documents in hand",
) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop cleanly; the second one ends at once.

    in_hand: says what is still finished after the first one.
    """
    asked = False

    def handle(*_: Any) -> None:
        nonlocal asked
        if asked:
            # waits for no write or retry that is under way
            _end("Stopped. Run the same command to go on.", _FRESH_LINE)
        asked = True
        _say(f"Stopping after {in_hand()}; press Ctrl-C again to stop at once.", _FRESH_LINE)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _end(text: str, start: str) -> None:
    _say(text, start)
    os._exit(130)


def _say(text: str, start: str) -> None:
    """Write a line to stderr past Python's buffers, which the signal may have come in the midst of.

    A second write within one to the same buffer would be refused. start: for a terminal alone.
    """
    with suppress(OSError):
        os.write(2, f"{start if os.isatty(2) else ''}{text}\n".encode())
