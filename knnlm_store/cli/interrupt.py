"""What Ctrl-C does to long work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from knnlm_store.cli import output


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop cleanly; the second one ends at once."""
    asked = False

    def handle(*_: Any) -> None:
        nonlocal asked
        if asked:
            # Waits for no write or retry that is under way: a run may be killed at any instant.
            output.restore_terminal()
            output.clear_line()
            output.say("Stopped. Run the same command to go on.")
            os._exit(130)
        asked = True
        output.clear_line()
        output.say("Stopping after the documents in hand; Ctrl-C again to stop at once.")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
