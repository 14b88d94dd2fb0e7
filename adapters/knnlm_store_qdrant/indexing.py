"""The HNSW index: it is built by the server, in the background, once it is told to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from qdrant_client import models

from knnlm_store.errors import BackendUnavailable, StoreError
from knnlm_store_qdrant.server import Server

_SOON, _LATER = 0.1, 2.0  # seconds between looks
_NUDGE = 10.0  # seconds after which a server that does not begin is told again
_SLOWEST = 100.0  # entries a second; no machine that is at work indexes fewer


@dataclass(frozen=True, slots=True)
class Progress:
    """What a collection says of itself. `green` means that nothing is left to do."""

    status: models.CollectionStatus
    entries: int
    indexed: int
    segments: int
    links: int
    threshold: int | None
    trouble: str

    @classmethod
    def of(cls, server: Server, collection: str) -> Progress:
        """Ask the server."""
        with server.calling() as client:
            info = client.get_collection(collection)
        trouble = getattr(info.optimizer_status, "error", "")
        return cls(
            info.status,
            info.points_count or 0,
            info.indexed_vectors_count or 0,
            info.segments_count,
            info.config.hnsw_config.m,
            info.config.optimizer_config.indexing_threshold,
            str(trouble),
        )

    @property
    def has_failed(self) -> bool:
        """Whether it met an error; nothing more is built then until it is told to."""
        return self.status == models.CollectionStatus.RED or bool(self.trouble)

    @property
    def work(self) -> tuple[models.CollectionStatus, int, int]:
        """What changes when some of the work is done."""
        return self.status, self.indexed, self.segments

    def describe(self) -> str:
        """Say how searches are answered."""
        if not self.indexed:
            return "exact (no index built yet)"
        share = (
            "" if self.indexed >= self.entries else f" over {self.indexed:,} entries, else exact"
        )
        return f"HNSW{self.links}{share}"


def build(server: Server, collection: str, kilobytes: int, stall: float) -> str | None:
    """Have segments of `kilobytes` and more indexed from now on, and wait until they are.

    Waits for as long as the server is at work. Raises BackendUnavailable if it does not begin
    within `stall` seconds, or says that it is at work for far longer than that can take and
    nothing of it is done; StoreError if it failed.
    """
    before, began = Progress.of(server, collection), time.monotonic()
    if before.threshold != kilobytes or before.has_failed:
        _allow(server, collection, kilobytes)
    elif before.status == models.CollectionStatus.GREEN:
        return None
    after = _finished(server, collection, kilobytes, stall)
    if not after.indexed or after.indexed == before.indexed:
        return None
    seconds = time.monotonic() - began
    return (
        f"built HNSW{after.links} over {after.indexed:,} of {after.entries:,} entries in "
        f"{seconds:.1f} s (recall not measured)"
    )


def _finished(server: Server, collection: str, kilobytes: int, stall: float) -> Progress:
    """Look until it is green twice in a row: at first nothing may have begun yet."""
    last, quiet, pause = Progress.of(server, collection), time.monotonic(), _SOON
    nudged = quiet
    while True:
        time.sleep(pause)
        now = Progress.of(server, collection)
        if now.has_failed:
            raise _failure(server, now)
        if now.status == last.status == models.CollectionStatus.GREEN:
            return now
        instant = time.monotonic()
        if now.work != last.work:
            quiet = instant
        _check_patience(server, now, instant - quiet, stall)
        if now.status != models.CollectionStatus.YELLOW and instant - nudged > _NUDGE:
            _allow(server, collection, kilobytes)  # a server just started waits for a change
            nudged = instant
        last, pause = now, min(pause * 1.5, _LATER)


def _failure(server: Server, now: Progress) -> StoreError:
    return StoreError(
        f"Qdrant at {server.place} failed to build the index: {now.trouble or 'red'}.",
        hint="Look into the server's log; searches go on without the index.",
    )


def _check_patience(server: Server, now: Progress, quiet: float, stall: float) -> None:
    """Raise BackendUnavailable if nothing has changed for too long, `quiet` seconds."""
    at_work = now.status == models.CollectionStatus.YELLOW
    # One large segment is built in one go: nothing is to be seen of it before it is done.
    if quiet > stall + at_work * now.entries / _SLOWEST:
        said = "is not getting on with" if at_work else "has not begun to build"
        raise BackendUnavailable(
            f"Qdrant at {server.place} {said} the index.",
            hint="Look into the server's log, then run: knnlm-store compact STORE",
        )


def _allow(server: Server, collection: str, kilobytes: int) -> None:
    with server.calling() as client:
        client.update_collection(
            collection,
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=kilobytes),
        )
