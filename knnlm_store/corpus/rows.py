"""From rows, whatever container they lay in, to documents."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

from knnlm_store.corpus.inputs import Kind, Target
from knnlm_store.corpus.values import Document, Problem, ReadOptions, id_of, reason, surrogate
from knnlm_store.wording import listed

LOOKED_AT = 1000
"""Rows at the beginning of a file. Most files show all their columns in the first one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `number` counts from 1, `position` is the bytes of input up to its end."""

    where: str
    number: int
    values: Mapping[str, Any]
    position: int


class Unusable(Exception):
    """A row, or a value of it, that cannot be used; the message says why."""


def documents(
    rows: Iterable[Row | Problem], target: Target, options: ReadOptions
) -> Iterator[Document | Problem]:
    """The documents of a target's rows; problems among the rows pass through."""
    missing, names = set(options.metadata_columns), set[str]()
    position, count = 0, 0
    for row in rows:
        count += 1
        if isinstance(row, Problem):
            yield row
            continue
        missing -= row.values.keys()
        # of others than JSON only the columns that were asked for are read
        if missing and target.kind is Kind.JSONL and count <= LOOKED_AT:
            names |= row.values.keys()
        for item in _read(row, target, options, row.position - position):
            if isinstance(item, Document):
                position = row.position
            yield item
    if not count:
        yield Problem(target.where, "There are no rows.", failed=False)
    elif missing:
        yield Problem(target.where, no_metadata_column("No row", missing, names), failed=True)


def no_column(name: str, present: Iterable[str]) -> str:
    """The sentence for a column that is not there."""
    return f"There is no column {name!r}; there are: {listed(map(str, present))}."


def no_metadata_column(which: str, missing: Iterable[str], present: Collection[str]) -> str:
    """The sentence for columns that rows lack; which: a word for these rows."""
    there = f"; there are: {listed(present)}" if present else ""
    return f"{which} has the metadata column {listed(missing)}{there}."


def _read(
    row: Row, target: Target, options: ReadOptions, size: int
) -> Iterator[Document | Problem]:
    try:
        text = _text(row, options.text_column)
        name = _name(row, target, options)
    except Unusable as error:
        yield Problem(row.where, str(error), failed=True)
        return
    if not text or text.isspace():
        document = id_of(target.source, name)
        yield Problem(row.where, "The document is empty.", failed=False, document=document)
        return
    metadata, problems = _metadata(row, options)
    yield from problems
    yield Document(target.source, name, text, metadata, size)


def _metadata(row: Row, options: ReadOptions) -> tuple[dict[str, Any], list[Problem]]:
    """What is kept with a document; a value that cannot be kept costs only itself."""
    kept: dict[str, Any] = dict(options.metadata)
    problems: list[Problem] = []
    for column in options.metadata_columns:
        try:
            value = _plain(column, row.values.get(column))
        except Unusable as error:
            problems.append(Problem(row.where, str(error), failed=True))
            continue
        if value is not None:
            kept[column] = value
    return kept, problems


def _text(row: Row, column: str) -> str:
    if column not in row.values:
        raise Unusable(no_column(column, row.values))
    value = row.values[column]
    if value is None:  # a null is an empty text, as every writer of tables means it
        return ""
    if not isinstance(value, str):
        raise Unusable(f"The column {column!r} holds {type(value).__name__}, not text.")
    if surrogate(value):
        raise Unusable("The text holds a lone surrogate.")
    return value


def _name(row: Row, target: Target, options: ReadOptions) -> str:
    column = options.id_column
    value = row.values.get(column)
    if value is None:
        if column in row.values and options.id_required:
            raise Unusable(f"The column {column!r} is null, no usable id.")
        if options.id_required:
            raise Unusable(no_column(column, row.values))
        return target.row_name(row.number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(f"The column {column!r} holds {type(value).__name__}, no usable id.")
    name = str(value)
    if not name or surrogate(name):
        raise Unusable(f"The column {column!r} holds {name!r}, no usable id.")
    return name


def _plain(column: str, value: Any) -> Any:
    """A metadata value as JSON gives it back; nothing for null and NaN."""
    if isinstance(value, float) and math.isnan(value):
        return None
    try:
        written = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_isoformat)
        if surrogate(written):
            raise Unusable(f"The column {column!r} holds a lone surrogate; it is left out.")
        return json.loads(written)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"The column {column!r} cannot be kept as metadata: {reason(error)}."
        raise Unusable(what) from error


def _isoformat(value: object) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
