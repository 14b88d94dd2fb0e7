"""A real backend with faults on command, and a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

from knnlm_store.errors import BackendUnavailable
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Location, Neighbours

PLACE = Location("memory", "", "memory")


def healthy(call: int) -> None:
    """No fault."""


class Faulty(MemoryBackend):
    """Answers for real, after `fault` has raised or waited as it likes; knows who called."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.fault: Callable[[int], object] = healthy
        self.calls = 0
        self.threads: set[str] = set()
        self.timeouts: list[float | None] = []

    def _search(self, *arguments: Any) -> Neighbours:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        self.timeouts.append(arguments[-1])
        self.fault(self.calls)
        return super()._search(*arguments)


class FaultyRemote(Faulty):
    """One that decoding holds to its deadline."""

    remote: ClassVar[bool] = True


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def after(good: int, fault: Callable[[int], object]) -> Callable[[int], object]:
    """A fault that begins when so many calls have gone well."""
    return lambda call: fault(call) if call > good else None


def down(call: int) -> None:
    """What an adapter makes of a server that is not there."""
    raise BackendUnavailable("The server is down.")
