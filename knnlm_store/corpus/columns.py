"""Whether the metadata columns that are asked for are anywhere, told before all is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from knnlm_store.corpus.inputs import Kind, Target
from knnlm_store.corpus.readers import json_rows
from knnlm_store.corpus.rows import LOOKED_AT, Row, no_metadata_column
from knnlm_store.corpus.tables import Hub, table_columns
from knnlm_store.errors import CorpusError


class Known(NamedTuple):
    """Some columns of a target. sure: whether those of all its `Known` together are all it has."""

    columns: Iterable[str]
    sure: bool = True


def known(target: Target, hub: Hub | None) -> Iterator[Known]:
    """Look for a target's columns, a few at a time. hub: a hub dataset as it was opened."""
    if hub is not None:
        yield Known(hub.columns or (), sure=hub.columns is not None)
    elif target.path is None:  # what a pipe holds is known once it is read
        yield Known((), sure=False)
    elif target.kind is not Kind.TEXT:
        try:
            with open(target.path, "rb") as stream:
                yield from _in_file(stream, target)
        except OSError:  # told of when it is to be read
            yield Known((), sure=False)


def _in_file(stream: Any, target: Target) -> Iterator[Known]:
    if target.kind is Kind.PARQUET:
        names = table_columns(stream)
        yield Known(names or (), sure=names is not None)
        return
    for number, row in enumerate(islice(json_rows(stream, target.where), LOOKED_AT + 1)):
        if isinstance(row, Row):
            yield Known(row.values, sure=number < LOOKED_AT)
        else:
            yield Known((), sure=False)


def doubt(wanted: Iterable[str], found: Iterable[Known]) -> str:
    """Say which of the wanted columns are nowhere, as far as known; nothing where all are there.

    Raises CorpusError where that is sure.
    """
    missing, names, sure = set(wanted), set[str](), True
    for columns, known_all in found if missing else ():
        missing -= (columns := set(columns))
        if not missing:
            return ""
        names |= columns
        sure &= known_all
    if not missing:
        return ""
    if not names:
        return "There are no rows, and only rows have metadata columns." if sure else ""
    if not sure:
        return no_metadata_column("None of the first rows", missing, names)
    near = get_close_matches(min(missing), names, n=1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    raise CorpusError(
        no_metadata_column("No row", missing, names),
        hint=f"{meant}Name a column that is there, or none.",
    )
