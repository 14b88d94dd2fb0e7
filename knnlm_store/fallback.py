"""Searches on the decoding path: a deadline, a circuit breaker, then the plain model.

Knows nothing of models: where a search fails it gives None, and whoever asked goes on without
neighbours. Evaluation and ingest search the datastore itself, where errors raise.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from knnlm_store.errors import (
    BackendUnavailable,
    InvalidEntries,
    KnnlmError,
    StoreError,
    StoreMismatch,
    UsageError,
)
from knnlm_store.several import Searchable, in_thread, is_remote
from knnlm_store.values import Float32, Freshness, Neighbours

TIMEOUT = 2.0
"""Seconds a step waits: ten times the slowest good answer seen (Milvus' consistent reads)."""
ROWS = 16
"""Rows a search may hold before its deadline grows: a prompt's positions are one search."""

_FAILURES = 3  # in a row, before the breaker opens
_COOL_DOWN, _LONGEST = 5.0, 60.0  # seconds, doubling from one to the other
_GIVEN_UP = 4  # calls that may hang at once, each in a thread
_GRACE = 1.1  # so that a client which keeps to the timeout says itself what was wrong
_HINT = "See whether it is up; --search-timeout, or use(timeout=...) in Python, gives it longer."

_NOT_HELD = nullcontext()
_log = logging.getLogger(__name__)


@dataclass
class Outages:
    """Steps that went without the datastore; where several are in use, each counts for itself.

    fallbacks: steps left to the plain model. failures: searches that failed, were late, or had
    to wait for a late one; the other fallbacks came while the breaker was open. opened: how often
    it opened. last_error: what the last failure said. `lock` is held while a number changes.
    """

    fallbacks: int = field(default=0, kw_only=True)
    failures: int = field(default=0, kw_only=True)
    opened: int = field(default=0, kw_only=True)
    last_error: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()


class Guard:
    """Searches one datastore, or one pool, for decoding. Threads may share an object.

    timeout: seconds that a search of up to 16 rows may take where the backend is remote, more
    rows longer in proportion; None waits for ever. fallback: False raises every error instead
    of giving None, and knows no breaker. clock: seconds, for the breaker. held: keeps the
    datastore open, also for a search that nobody waits for any more. Raises UsageError for a
    timeout that cannot be right.
    """

    def __init__(
        self,
        store: Searchable,
        outages: Outages,
        *,
        timeout: float | None = TIMEOUT,
        fallback: bool = True,
        clock: Callable[[], float] = time.monotonic,
        held: AbstractContextManager[object] = _NOT_HELD,
    ) -> None:
        if timeout is not None and not 0 < timeout < math.inf:
            raise UsageError(
                f"A search's timeout must be above 0 seconds, not {timeout}.",
                hint=f"{TIMEOUT:g} is the default; None waits for ever.",
            )
        self.remote = is_remote(store)
        self.store = store
        self._outages = outages
        self._held = held
        self._timeout = timeout
        self._fallback = fallback
        self._breaker = Breaker(clock)
        self._deadline = _Deadline(str(store.location))
        self._told = False

    def search(self, queries: Float32, k: int) -> Neighbours | None:
        """Find the k nearest entries of queries `[q, d]`; None if the step must do without.

        No retries. What the caller did wrong raises all the same: UsageError, InvalidEntries.
        """
        admission = self._breaker.admit() if self._fallback else Admission.TRIAL
        if admission is Admission.REFUSED:
            with self._outages.lock:
                self._outages.fallbacks += 1
            return None
        try:
            found = self._ask(queries, k, _GIVEN_UP if admission is Admission.TRIAL else 1)
        except (InvalidEntries, StoreMismatch):
            raise
        except StoreError as error:
            self._failed(error)
            if not self._fallback:
                raise
            return None
        if self._breaker.succeeded():
            self._told = False
            _log.info("%s answers again and is mixed in.", self.store.location)
        return found

    def _ask(self, queries: Float32, k: int, most_given_up: int) -> Neighbours:
        seconds = self._timeout and self._timeout * max(1.0, len(queries) / ROWS)

        def search() -> Neighbours:
            with self._held:
                return self.store.search(queries, k, freshness=Freshness.FAST, timeout=seconds)

        if seconds is None or not self.remote:
            return search()
        return self._deadline.call(search, seconds, most_given_up)

    def _failed(self, error: StoreError) -> None:
        """Count a failure, and tell of the first one of an outage."""
        opened = self._fallback and self._breaker.failed()
        with self._outages.lock:
            self._outages.fallbacks += self._fallback
            self._outages.failures += 1
            self._outages.opened += opened
            self._outages.last_error = str(error)
            tell, self._told = self._fallback and not self._told, True
        if tell:
            _log.warning("%s Until it answers, the plain model goes on alone.", error)


class Admission(enum.Enum):
    """Whether a search may be made: yes, no, or as the trial after a cool-down."""

    CLOSED = enum.auto()
    REFUSED = enum.auto()
    TRIAL = enum.auto()


class Breaker:
    """Stops asking after three failures in a row, then lets one trial through after each pause.

    The pause is 5 s, and doubles up to 60 s while trials fail.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._failures = 0
        self._cool_down = _COOL_DOWN
        self._trial_at: float | None = None  # None while closed
        self._trying = False

    def admit(self) -> Admission:
        """Decide on the next search; its end is told by `succeeded` or `failed`."""
        with self._lock:
            if self._trial_at is None:
                return Admission.CLOSED
            if self._clock() < self._trial_at:
                return Admission.REFUSED
            # a trial that ends in neither (a bug raises) is followed by another
            self._pause()
            self._trying = True
            return Admission.TRIAL

    def succeeded(self) -> bool:
        """Note an answer; tells whether that closed the breaker."""
        with self._lock:
            was_open = self._trial_at is not None
            self._reset()
            return was_open

    def failed(self) -> bool:
        """Note a failure; tells whether that opened the breaker."""
        with self._lock:
            if self._trying:
                self._trying = False
                self._cool_down = min(2 * self._cool_down, _LONGEST)
                self._pause()
            if self._trial_at is not None:  # also calls that began before it opened
                return False
            self._failures += 1
            if self._failures < _FAILURES:
                return False
            self._pause()
            return True

    def _pause(self) -> None:
        self._trial_at = self._clock() + self._cool_down


class _Deadline:
    """Makes calls in threads of their own, and stops waiting for one at its deadline.

    A client's own timeout is not enough: one that bounds each read waits for ever on a reply that
    comes byte by byte. Every call has its own place for the answer, so that a late one reaches
    nobody. The threads are daemons: none keeps the interpreter from ending.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._given_up = 0
        self._late_after = 0.0

    def call(
        self, search: Callable[[], Neighbours], seconds: float, most_given_up: int
    ) -> Neighbours:
        """Give what the search gives, or raises, within so many seconds and a tenth.

        Raises BackendUnavailable when they are over, and at once while `most_given_up` earlier
        calls still hang.
        """
        if self._given_up >= most_given_up:
            raise BackendUnavailable(
                f"{self._where} did not answer an earlier search within {self._late_after:g} s.",
                hint=_HINT,
            )
        answer = in_thread(search)
        came = False
        try:
            came = bool(wait([answer], seconds * _GRACE).done)
        finally:  # also where the user interrupts the wait
            if not came:
                self._give_up(answer, seconds)
        if came:
            return answer.result()
        raise BackendUnavailable(f"{self._where} did not answer within {seconds:g} s.", hint=_HINT)

    def _give_up(self, answer: Future[Neighbours], seconds: float) -> None:
        with self._lock:
            self._given_up += 1
            self._late_after = seconds
        answer.add_done_callback(self._came_late)

    def _came_late(self, answer: Future[Neighbours]) -> None:
        with self._lock:
            self._given_up -= 1
        error = answer.exception()
        if error is not None and not isinstance(error, KnnlmError):
            # a bug, which has nobody left to be raised to
            _log.error("A search of %s, given up before, failed.", self._where, exc_info=error)
