"""Rows of Parquet files and of hub datasets; their libraries are imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from knnlm_store.corpus.inputs import Target, split_hub
from knnlm_store.corpus.rows import Row, no_column
from knnlm_store.corpus.values import Problem, ReadOptions, reason
from knnlm_store.errors import CorpusError
from knnlm_store.registry import require

# Few, because documents may be long; a forward pass costs far more than a small batch.
_ROWS = 8
# Without a buffer, Arrow reads a whole column of a row group before its first row.
_BUFFER = 1 << 20


def parquet_rows(stream: BinaryIO, target: Target, options: ReadOptions) -> Iterator[Row | Problem]:
    """The rows of a Parquet file, batch by batch, only the columns that are looked at."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(stream, buffer_size=_BUFFER) as table:
            if what := _unfit(table.schema_arrow, options):
                yield Problem(target.where, what, failed=True)
                return
            columns = [c for c in options.columns if c in table.schema_arrow.names]
            size, total = target.size or 0, max(1, table.metadata.num_rows)
            for batch in table.iter_batches(_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield _table_row(batch, index, target, number, size * number // total)
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"The file cannot be read further: {reason(error)}."
        yield Problem(f"{target.where}#{number + 1}", what, failed=True)


def table_columns(stream: BinaryIO) -> list[str] | None:
    """The columns of a Parquet file; None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(stream) as table:
            names: list[str] = table.schema_arrow.names
            return names
    except (pa.ArrowException, OSError, ValueError):
        return None


def _unfit(schema: Any, options: ReadOptions) -> str:
    """Why no row of a table could be used, or nothing."""
    import pyarrow as pa

    if what := _missing(schema.names, options):
        return what
    for column in options.columns:
        if schema.names.count(column) > 1:
            return f"There are several columns {column!r}."
    kind = schema.field(options.text_column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(test(kind) for test in (*texts, pa.types.is_null)):
        return f"The column {options.text_column!r} holds {kind}, not text."
    return ""


def _missing(names: Sequence[str], options: ReadOptions) -> str:
    """The sentence for the first column that must be there and is not, or nothing."""
    required = [options.text_column, *([options.id_column] if options.id_required else [])]
    return next((no_column(column, names) for column in required if column not in names), "")


def _table_row(batch: Any, index: int, target: Target, number: int, position: int) -> Row | Problem:
    where = f"{target.where}#{number}"
    try:
        values = {name: batch.column(i)[index].as_py() for i, name in enumerate(batch.schema.names)}
    except (ValueError, OverflowError) as error:  # no UTF-8; a time that Python cannot hold
        return Problem(where, f"The row cannot be read: {reason(error)}.", failed=True)
    return Row(where, number, values, position)


class Hub(NamedTuple):
    """A stream of rows, and the columns that the dataset has; None if nobody knows yet."""

    stream: Any
    columns: list[str] | None


def open_hub(target: Target, options: ReadOptions) -> Hub:
    """The stream of a hub dataset, reduced to the columns that are looked at.

    Raises CorpusError if there is no such dataset, configuration or split.
    """
    require("datasets", "data")
    import datasets

    name, config, split = split_hub(target.path or "")
    try:
        stream = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        raise CorpusError(
            f"{target.where} cannot be opened: {reason(error)}.",
            hint="Write hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT; check the name and the network.",
        ) from error
    names = stream.column_names
    if names is None:  # known only once the first row is read
        return Hub(stream, None)
    if what := _missing(names, options):
        raise CorpusError(f"{target.where}: {what}")
    return Hub(stream.select_columns([c for c in options.columns if c in names]), names)


def hub_rows(hub: Hub, target: Target) -> Iterator[Row | Problem]:
    """The rows of a hub dataset."""
    number = position = 0
    try:
        for number, values in enumerate(hub.stream, 1):
            position += sum(
                len(v.encode("utf-8", "replace")) for v in values.values() if isinstance(v, str)
            )
            yield Row(f"{target.where}#{number}", number, values, position)
    except Exception as error:  # noqa: BLE001 - readers, decoders and networks of every kind
        what = f"The dataset cannot be read further: {reason(error)}."
        yield Problem(f"{target.where}#{number + 1}", what, failed=True)
