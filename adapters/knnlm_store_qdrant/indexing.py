"""The HNSW index: it is built by the server, in the background, once it is told to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from qdrant_client import models

from knnlm_store.errors import BackendUnavailable, StoreError
from knnlm_store_qdrant.server import Server

_SOON, _LATER = 0.1, 2.0  # seconds between looks
_NUDGE = 10.0  # seconds after which a server that does not begin is told again


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

    Waits for as long as the server is at work. Raises BackendUnavailable if it has work to do
    and none is done for `stall` seconds, StoreError if it failed.
    """
    before, began = Progress.of(server, collection), time.monotonic()
    if before.threshold != kilobytes:
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
        if now.status == models.CollectionStatus.RED or now.trouble:
            raise StoreError(
                f"Qdrant at {server.place} failed to build the index: {now.trouble or 'red'}.",
                hint="Look into the server's log; searches go on without the index.",
            )
        if now.status == last.status == models.CollectionStatus.GREEN:
            return now
        instant = time.monotonic()
        if now.status == models.CollectionStatus.YELLOW or now != last:
            quiet = instant
        elif instant - quiet > stall:
            raise BackendUnavailable(
                f"Qdrant at {server.place} has not begun to build the index.",
                hint="Look into the server's log, then run: knnlm-store compact",
            )
        elif instant - nudged > _NUDGE:
            _allow(server, collection, kilobytes)  # a server just started waits for a change
            nudged = instant
        last, pause = now, min(pause * 1.5, _LATER)


def _allow(server: Server, collection: str, kilobytes: int) -> None:
    with server.calling() as client:
        client.update_collection(
            collection,
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=kilobytes),
        )
