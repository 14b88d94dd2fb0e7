"""Whether a bundle's entries are what its catalog says: all of them, before any is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from knnlm_store.bundle import tables
from knnlm_store.bundle.backend import BundleBackend
from knnlm_store.bundle.listing import BundleFile, check_digest, damaged
from knnlm_store.datastore import Datastore
from knnlm_store.errors import InvalidEntries
from knnlm_store.values import Entries, Int64

_BATCH = 4 * 1024 * 1024  # bytes of keys that are held at once


def check(bundle: Datastore, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """Read a bundle in full: checksums, columns, and each entry against the catalog.

    progress: called with how many entries of how many were checked. Raises StoreCorrupt, naming
    the file.
    """
    backend = bundle.backend
    assert isinstance(backend, BundleBackend)
    first = 0
    for shard in backend.listing.shards:
        check_digest(backend.folder, shard)
        _check_shard(backend, shard, first, progress)
        first += shard.rows


def _check_shard(
    backend: BundleBackend, shard: BundleFile, first: int, progress: Callable[[int, int], None]
) -> None:
    place, spec = backend.folder / shard.name, backend.spec()
    size = max(1, _BATCH // (4 * spec.dimension))
    schema = tables.entries_schema(spec.dimension, spec.storage)
    with tables.opened(place, schema) as table:
        if table.metadata.num_rows != shard.rows:
            raise damaged(place, "has another number of rows than the bundle says")
        for entries, ids in tables.batches(table, size, with_keys=True):
            _check_entries(backend, place, entries, ids, first)
            first += len(entries)
            progress(first, backend.listing.entries)


def _check_entries(
    backend: BundleBackend, place: Path, entries: Entries, ids: Int64, first: int
) -> None:
    """Raise StoreCorrupt unless entries are those of rows first.. of the bundle."""
    contents = backend.contents
    rows = np.arange(first, first + len(entries))
    documents = np.searchsorted(contents.starts, rows, "right") - 1
    same = (
        (entries.documents == contents.numbers[documents])
        & (entries.positions == rows - contents.starts[documents])
        & (ids == entries.documents + entries.positions)
    )
    if not same.all():
        document = list(contents.documents)[documents[int(np.argmin(same))]]
        raise damaged(place, f"does not hold the tokens of {document!r} one by one")
    try:
        entries.check(backend.spec())
    except InvalidEntries as error:
        raise damaged(place, f"holds entries that cannot be ({str(error).rstrip('.')})") from error
