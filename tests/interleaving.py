"""Runs several writers on one datastore, one call to the backend at a time, in a chosen order.

The datastore is a MemoryBackend: its calls are atomic and see every call before, which is what
claims assume of a backend. With `paged` it keeps no more than vendors promise: records are read
page by page and written one by one, and others may write in between.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import pytest

from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Entries, Int64, Location, Spec

MOST_STEPS = 3000
_TIMEOUT = 30.0
_here = threading.local()


class KilledError(BaseException):
    """What stands for the end of a process: nothing of ours may catch it and go on."""


class Program:
    """A function in a thread that waits for its turn before every step.

    dies_at: the step in place of which its process ends. names: of its writers.
    """

    def __init__(self, body: Callable[[Program], None], dies_at: int | None = None) -> None:
        self.is_over = self.died = False
        self.steps = 0
        self.names: set[str] = set()
        self._body, self._dies_at = body, dies_at
        self._error: BaseException | None = None
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self, *_: object) -> None:
        """Let others go first; called by the program itself, between two calls."""
        self._pause.release()
        self._wait(self._turn)
        if self.steps == self._dies_at:
            self.died = True
            raise KilledError

    def go_on(self) -> None:
        """Take one step; called from outside."""
        self.steps += 1
        self._turn.release()
        self._wait(self._pause)
        if self.is_over:
            self._thread.join()
            if self._error is not None:
                raise self._error

    @staticmethod
    def _wait(semaphore: threading.Semaphore) -> None:
        if not semaphore.acquire(timeout=_TIMEOUT):
            raise TimeoutError

    def _run(self) -> None:
        try:
            self._wait(self._turn)
            _here.program = self
            self._body(self)
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001  carried to the thread that waits
            self._error = error
        finally:
            self.is_over = True
            self._pause.release()


Choice: TypeAlias = Callable[[list[Program]], Program]


def run(programs: Sequence[Program], choose: Choice) -> None:
    """Run programs to their ends; fails where they do, and if they get nowhere."""
    for _ in range(MOST_STEPS):
        going = [program for program in programs if not program.is_over]
        if not going:
            return
        choose(going).go_on()
    pytest.fail("Nobody gets on.")


def at_random(seed: int) -> Choice:
    """Any program at any time, or, for some seeds, one for a few steps in a row."""
    chance = random.Random(seed)
    stays = chance.choice([0.0, 0.5, 0.85])
    last: list[Program] = []

    def choose(going: list[Program]) -> Program:
        if not (last and last[0] in going and chance.random() < stays):
            last[:] = [chance.choice(going)]
        return last[0]

    return choose


def in_order(first: Sequence[int]) -> Choice:
    """The programs of these places first, then each in turn."""
    turns = iter(first)
    taken = [0]

    def choose(going: list[Program]) -> Program:
        taken[0] += 1
        return going[next(turns, taken[0]) % len(going)]

    return choose


class Interleaved(MemoryBackend):
    """Every call is a step of the program that makes it."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.paged = False

    @classmethod
    def made(cls, dimension: int = 4, *, paged: bool = False) -> Interleaved:
        backend = cls.connect(Location("memory", "", "memory"))
        backend.create(Spec(dimension), {})
        backend.paged = paged
        return backend

    def _step(self) -> None:
        program = getattr(_here, "program", None)
        if program is not None:
            program.step()

    def _upsert(self, entries: Entries) -> None:
        self._step()
        super()._upsert(entries)

    def _delete(self, documents: Int64) -> None:
        self._step()
        super()._delete(documents)

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        self._step()
        return super()._scan(with_keys, documents, batch_size)

    def flush(self) -> None:
        self._step()

    def put_records(self, records: Mapping[str, bytes]) -> None:
        for part in [{n: v} for n, v in records.items()] if self.paged else [records]:
            self._step()
            super().put_records(part)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        self._step()
        return super().get_records(names)

    def delete_records(self, names: Sequence[str]) -> None:
        for part in [[name] for name in names] if self.paged else [names]:
            self._step()
            super().delete_records(part)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        after = ""
        while True:
            self._step()
            found = [r for r in super().scan_records(prefix) if r[0] > after]
            yield from found[:1] if self.paged else found
            if not self.paged or not found:
                return
            after = found[0][0]
