"""A bundle as a backend that can be read: what `copying.copy` needs of its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from knnlm_store.backend import VectorBackend
from knnlm_store.bundle import tables
from knnlm_store.bundle.contents import Contents
from knnlm_store.bundle.listing import BundleFile, Listing
from knnlm_store.errors import UsageError
from knnlm_store.values import (
    DocumentFilter,
    Entries,
    Float32,
    Freshness,
    Int64,
    Location,
    Neighbours,
    Spec,
)

SCHEME = "bundle"


class BundleBackend(VectorBackend):
    """Read-only: its entries are scanned from Parquet files, and cannot be searched."""

    def __init__(self, folder: Path, listing: Listing, contents: Contents) -> None:
        self.folder, self.listing, self.contents = folder, listing, contents
        self.storages = (listing.storage,)
        self._spec = Spec(listing.dimension, listing.storage)
        self._by_number = np.argsort(contents.numbers)

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Read all but the entries. Raises as Listing.read, and StoreCorrupt."""
        folder = Path(location.root) / location.name
        listing = Listing.read(folder)
        return cls(folder, listing, Contents.read(folder, listing))

    @classmethod
    def names(cls, location: Location) -> list[str]:
        """Nothing: bundles are named by their folders."""
        return []

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Refuse."""
        raise self._only("written by knnlm-store export")

    def spec(self) -> Spec:
        """What the datastore was that was exported."""
        return self._spec

    def drop(self) -> None:
        """Refuse."""
        raise self._only("removed as a folder")

    def _upsert(self, entries: Entries) -> None:
        raise self._only("read")

    def _delete(self, documents: Int64) -> None:
        raise self._only("read")

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        raise UsageError(
            f"{self.folder} is a bundle, which cannot be searched.", hint=self._import_it()
        )

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        """In the order of the files; of them only the row groups that hold `documents`."""
        wanted = self._ranges(documents)
        first = 0
        for shard in self.listing.shards:
            last = first + shard.rows
            if _touches(wanted, first, last):
                for entries in self._read(shard, wanted - first, with_keys, batch_size):
                    if documents is not None:
                        entries = entries[np.isin(entries.documents, documents)]
                    if len(entries):
                        yield entries
            first = last

    def _ranges(self, documents: Int64 | None) -> Int64:
        """Rows of documents, int64 `[n, 2]`: the first and the one behind the last, ascending."""
        contents = self.contents
        if documents is None:
            return np.array([[0, self.listing.entries]], np.int64)
        numbers = contents.numbers[self._by_number]
        places = np.searchsorted(numbers, documents)
        places = places[places < len(numbers)]
        found = self._by_number[places[np.isin(numbers[places], documents)]]
        found = np.unique(found[contents.tokens[found] > 0])
        starts = contents.starts[found]
        return np.stack([starts, starts + contents.tokens[found]], axis=1)

    def _read(
        self, shard: BundleFile, wanted: Int64, with_keys: bool, batch_size: int
    ) -> Iterator[Entries]:
        """Read the row groups of a shard that touch `wanted`, rows of it."""
        schema = tables.entries_schema(self._spec.dimension, self._spec.storage)
        with tables.opened(self.folder / shard.name, schema) as table:
            rows = tables.rows_of_groups(table)
            groups = [i for i in range(len(rows) - 1) if _touches(wanted, rows[i], rows[i + 1])]
            for entries, _ in tables.batches(table, batch_size, with_keys=with_keys, groups=groups):
                yield entries

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Refuse."""
        raise self._only("read")

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read records, those of documents too."""
        held = (self.contents.records, self.contents.documents)
        return {name: some[name] for name in names for some in held if name in some}

    def delete_records(self, names: Sequence[str]) -> None:
        """Refuse."""
        raise self._only("read")

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records, those of documents too."""
        for records in (self.contents.records, self.contents.documents):
            yield from ((n, value) for n, value in records.items() if n.startswith(prefix))

    def size(self) -> int | None:
        """Bytes of the files."""
        return sum(file.bytes for file in self.listing.files)

    def _only(self, what: str) -> UsageError:
        return UsageError(
            f"{self.folder} is a bundle, which can only be {what}.", hint=self._import_it()
        )

    def _import_it(self) -> str:
        return (
            f"Import it first: knnlm-store import {self.folder} "
            f"--store faiss:stores/{self.listing.name}"
        )


def _touches(ranges: Int64, first: int, last: int) -> bool:
    """Whether some of the ascending, disjoint ranges `[n, 2]` has a row in first..last - 1."""
    place = int(np.searchsorted(ranges[:, 1], first, "right"))
    return place < len(ranges) and bool(ranges[place, 0] < last)
