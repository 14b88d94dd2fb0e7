"""The Parquet files of a bundle: their columns, and how they are written and read.

pyarrow is imported on first use.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from knnlm_store.bundle.listing import BundleFile, Holds, damaged
from knnlm_store.values import Entries, Float32, Int64

_BUFFER = 1 << 20  # without one, Arrow reads a whole column of a row group before its first row
_PLACES = ("document", "position", "token")


def entries_schema(dimension: int, storage: str) -> Any:
    """Columns of the entries: keys are float16 where the datastore kept them so, else float32."""
    import pyarrow as pa

    value = pa.float16() if storage == "float16" else pa.float32()
    key = pa.list_(pa.field("element", value, nullable=False), dimension)
    integer = pa.int64()
    return _schema(id=integer, document=integer, position=integer, token=pa.uint32(), key=key)


def documents_schema() -> Any:
    """Columns of the catalog: id, number and tokens of a document, and its record as JSON."""
    import pyarrow as pa

    return _schema(id=pa.string(), number=pa.int64(), tokens=pa.int64(), record=pa.string())


def records_schema() -> Any:
    """Columns of the other records."""
    import pyarrow as pa

    return _schema(name=pa.string(), value=pa.large_binary())


def _schema(**columns: Any) -> Any:
    import pyarrow as pa

    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


class TableFile:
    """A Parquet file that is being written, checksummed as it is. rows: written so far."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.rows = 0
        self._schema = schema
        self._file = _Hashed(path)
        # keys are noise, which no compression makes smaller
        others = [name for name in schema.names if name != "key"]
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression=dict.fromkeys(others, "zstd"),
            use_dictionary=False,
            write_statistics=others,
        )

    @property
    def bytes(self) -> int:
        """Count the bytes written so far."""
        return self._file.bytes

    def write(self, columns: Mapping[str, Any]) -> None:
        """Write columns, all of one length, as one row group."""
        import pyarrow as pa

        table = pa.table(dict(columns), schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        self.rows += len(table)

    def close(self, holds: Holds) -> BundleFile:
        """Finish the file, which is on the disk then; gives what bundle.json says of it."""
        self._writer.close()
        self._file.close()
        digest = self._file.digest.hexdigest()
        return BundleFile(self.path.name, holds, self.bytes, self.rows, digest)


class _Hashed(io.RawIOBase):
    """A new file that takes the digest of what is written to it, in one go with the writing."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("xb", buffering=0)
        self.digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        size = len(view)
        self.bytes += size
        while view:
            view = view[self._raw.write(view) :]
        return size

    def close(self) -> None:
        """Have all on the disk, and close."""
        if not self.closed:
            os.fsync(self._raw.fileno())
            self._raw.close()
        super().close()


def columns_of(entries: Entries, storage: str) -> dict[str, Any]:
    """Lay entries out as the columns of `entries_schema`."""
    import pyarrow as pa

    kind = np.float16 if storage == "float16" else np.float32
    flat = pa.array(entries.keys.astype(kind, copy=False).ravel())
    schema = entries_schema(entries.keys.shape[1], storage)
    return {
        "id": entries.ids,
        "document": entries.documents,
        "position": entries.positions,
        "token": entries.tokens.astype(np.uint32),
        "key": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("key").type),
    }


@contextmanager
def opened(path: Path, schema: Any) -> Iterator[Any]:
    """Open a Parquet file of a bundle to read. Raises StoreCorrupt, also within the block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER) as table:
            if not table.schema_arrow.equals(schema):
                raise damaged(path, "has other columns than a bundle's file of its kind")
            yield table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, "cannot be read as Parquet") from error


def batches(
    table: Any, size: int, *, with_keys: bool, groups: Sequence[int] | None = None
) -> Iterator[tuple[Entries, Int64]]:
    """Read entries of an open file, and their ids as they stand there, up to `size` at once.

    groups: row groups to read, all by default.
    """
    names = ["id", *_PLACES, *(["key"] if with_keys else [])]
    for batch in table.iter_batches(size, row_groups=groups, columns=names):
        ids, *places = (batch.column(name).to_numpy() for name in ("id", *_PLACES))
        documents, positions, tokens = (each.astype(np.int64, copy=False) for each in places)
        keys = _keys(batch.column("key")) if with_keys else np.empty((len(ids), 0), np.float32)
        yield Entries(keys, tokens, documents, positions), ids


def _keys(column: Any) -> Float32:
    flat: Float32 = column.flatten().to_numpy().astype(np.float32, copy=False)
    return flat.reshape(len(column), column.type.list_size)


def rows_of_groups(table: Any) -> Int64:
    """First row of each row group of an open file, and the number of rows behind the last one."""
    count = table.metadata.num_row_groups
    rows = [table.metadata.row_group(i).num_rows for i in range(count)]
    return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
