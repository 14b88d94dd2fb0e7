"""Repeats what failed for a passing reason: the errors that adapters mark `retryable`."""

from __future__ import annotations

import logging
import threading

import tenacity

from knnlm_store.backend import Indexed, VectorBackend
from knnlm_store.errors import KnnlmError

GIVE_UP_AFTER = 120.0

_log = logging.getLogger(__name__)


def retrying(
    give_up_after: float | None = None, abort: threading.Event | None = None
) -> tenacity.Retrying:
    """Make a caller, `retrying()(function, *args)`: pauses with jitter grow, for so many seconds.

    By default two minutes. abort: once set, nothing is repeated, and a pause ends.
    """
    give_up_after = GIVE_UP_AFTER if give_up_after is None else give_up_after
    abort = abort or threading.Event()
    return tenacity.Retrying(
        stop=tenacity.stop_after_delay(give_up_after) | tenacity.stop_when_event_set(abort),
        sleep=tenacity.sleep_using_event(abort),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, KnnlmError) and error.retryable
        ),
        reraise=True,
    )


def build_index(backend: VectorBackend) -> str | None:
    """Build the index of a backend that has one; says what was done, None if nothing.

    Entries are committed by then, and searches right without it: a failure is told, not raised.
    """
    if not isinstance(backend, Indexed):
        return None
    try:
        return retrying()(backend.build_index)
    except KnnlmError as error:
        _log.warning("The index was not built, which slows searches down: %s", error)
        return "not built; try again with: knnlm-store compact STORE"
