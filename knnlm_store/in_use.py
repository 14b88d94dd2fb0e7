"""What a model mixes in now: switched at any time, and closed once nobody is amid a step of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from knnlm_store.errors import StoreError

if TYPE_CHECKING:
    from knnlm_store.memories import Memories

_log = logging.getLogger(__name__)


class Held:
    """Datastores that were opened by name, which the last of their users closes.

    Whoever made it is the first, until `leave`; each with block is another. Threads may share it.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._lock = threading.Lock()
        self._users = 1

    def __enter__(self) -> Self:
        """Keep all open for a with block."""
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """End the with block."""
        self.leave()

    def leave(self) -> None:
        """Use them no longer."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        try:
            self._stack.close()
        except StoreError as error:  # whoever is last has nothing to do with it
            _log.warning("What is mixed in no longer could not be closed: %s", error)


class InUse:
    """What is in use, nothing at first. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self.now: Memories | None = None

    def swap(self, memories: Memories | None) -> Memories | None:
        """Use others from now on; gives the former, open and for the caller to put back."""
        with self._lock:
            before, self.now = self.now, memories
        return before

    def switch(self, memories: Memories | None) -> None:
        """Use others from now on, and have the former closed; after the end, these as well."""
        with self._lock:
            left = [self.now, memories] if self._ended else [self.now]
            self.now = None if self._ended else memories
        for each in left:
            if each is not None:
                each.held.leave()

    def end(self) -> None:
        """Use nothing any more, also where a with block is still to put back what it found."""
        with self._lock:
            self._ended = True
        self.switch(None)

    @contextmanager
    def holding(self) -> Iterator[Memories | None]:
        """Give what is in use; for the with block it stays open, whatever is switched to."""
        with ExitStack() as block:
            with self._lock:  # so that nobody closes it before it is held
                if (used := self.now) is not None:
                    block.enter_context(used.held)
            yield used
