"""Wishes for files without deleted points, each heard once and asked for until it is granted.

A deleted point is only marked as such: its vector, its payload and its id stay in the segments,
in the payload's index and in the log of writes. Making the files anew takes as long as the
collection is large, and a request is short, so the request is repeated with the wish it began
with. An engine that was started again meanwhile never heard of it, and begins anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from knnlm_store_qdrant.engine.refusal import Refused, engine, failed


class Wishes:
    """What clients wait for. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._begun: set[str] = set()
        self._answers: dict[str, Refused | None] = {}

    def granted(self, wish: str) -> bool:
        """Whether the files were made anew since the wish was first heard; raises Refused."""
        with self._lock:
            if wish not in self._answers:
                if wish not in self._begun:
                    self._open.add(wish)
                return False
            refusal = self._answers.pop(wish)
        if refusal is not None:
            raise refusal
        return True

    def grant(self, rewrite: Callable[[], None]) -> None:
        """Do the work if somebody waits for it; all who did when it began get to know its end."""
        if not self._open:
            return
        with self._lock:
            self._begun, self._open = self._open, set()
        refusal: Refused | None = failed("compacting broke off")
        try:
            with engine():
                rewrite()
            refusal = None
        except Refused as error:
            refusal = error
        finally:
            with self._lock:
                self._answers |= dict.fromkeys(self._begun, refusal)
                self._begun = set()
