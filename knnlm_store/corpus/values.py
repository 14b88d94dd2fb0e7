"""The value types of a corpus: documents, problems, and the options of reading."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from knnlm_store.errors import UsageError

ROW_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
TABLE_SUFFIXES = (".parquet",)
DEFAULT_INCLUDE = ("*.txt", "*.md", *(f"*{s}" for s in ROW_SUFFIXES + TABLE_SUFFIXES))
DEFAULT_ID_COLUMN = "id"

# Python's str may hold them, Unicode text may not: every tokenizer and store refuses them.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its identity: the unit that is added, replaced and deleted.

    `name` is the path relative to the source's root, the id column's value, or the number of
    the row (from 1). `metadata` is JSON-able. `size` counts bytes of input, for progress.
    """

    source: str
    name: str
    text: str
    metadata: Mapping[str, Any]
    size: int

    @property
    def id(self) -> str:
        """Unique among all sources: a source's name holds no slash."""
        return id_of(self.source, self.name)


def id_of(source: str, name: str) -> str:
    """Id of a document."""
    return f"{source}/{name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was not read as asked: where it is and one sentence about it.

    `failed` says that something was lost which the user would want; otherwise it was skipped
    harmlessly. `where` and `what` hold no line breaks. `document` is the id of a document that is
    there, but has no text.
    """

    where: str
    what: str
    failed: bool
    document: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How inputs are read. Raises UsageError for what cannot be right.

    source: name of the source, instead of the folder's, file's or dataset's own.
    text_column, id_column: columns of JSON lines, Parquet and hub datasets. A row without the
        default id column is named by its number; without one asked for by name it is a problem.
    metadata_columns: columns kept with each document; none unless named.
    metadata: constant pairs added to every document.
    include: patterns of the files read inside folders; exclude: of files and folders left out
        of folders and patterns. With a slash they match the relative path (`**` spans folders),
        without one the name at any depth.
    encoding: of text files; JSON lines are UTF-8 by their standard.
    limit: stop after so many documents.
    stdin_format: what `-` is, one text or JSON lines.
    may_be_empty: whether a folder or a pattern may name no file at all.
    """

    source: str | None = None
    text_column: str = "text"
    id_column: str = DEFAULT_ID_COLUMN
    metadata_columns: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = DEFAULT_INCLUDE
    exclude: tuple[str, ...] = ()
    encoding: str = "utf-8"
    limit: int | None = None
    stdin_format: Literal["text", "jsonl"] = "text"
    may_be_empty: bool = False

    def __post_init__(self) -> None:
        if self.source is not None:
            check_source(self.source)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"A limit of {self.limit} documents leaves nothing to read.")
        if not self.include:
            raise UsageError("No pattern of files to include is given.", hint="For example *.txt.")
        if self.stdin_format not in ("text", "jsonl"):
            raise UsageError(
                f"{self.stdin_format!r} is no format of standard input.",
                hint="Choose text or jsonl.",
            )
        self._check_columns()
        self._check_encoding()

    def _check_columns(self) -> None:
        if self.text_column == self.id_column:
            raise UsageError(f"The column {self.text_column!r} cannot be both text and id.")
        if self.text_column in self.metadata_columns:
            raise UsageError(f"The text column {self.text_column!r} cannot be metadata as well.")
        for name in self.metadata_columns:
            if name in self.metadata:
                raise UsageError(f"Metadata {name!r} is given both as a column and as a constant.")

    def _check_encoding(self) -> None:
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise UsageError(
                f"{self.encoding!r} is not a text encoding.",
                hint="Write for example utf-8, utf-16, latin-1 or cp1252.",
            ) from error

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are looked at, each once."""
        return tuple(dict.fromkeys((self.text_column, self.id_column, *self.metadata_columns)))

    @property
    def id_required(self) -> bool:
        """Whether the id column was asked for by name."""
        return self.id_column != DEFAULT_ID_COLUMN


def check_source(name: str) -> str:
    """The name itself; UsageError if it cannot name a source."""
    if not name.strip() or "/" in name or surrogate(name):
        raise UsageError(
            f"{name!r} cannot name a source: it must not be empty or hold a slash.",
            hint="Name the source yourself, with letters and digits.",
        )
    return name


def surrogate(text: str) -> bool:
    """Whether the text holds a lone surrogate, which no encoding of Unicode can write."""
    return _SURROGATE.search(text) is not None


def lossless(path: str) -> str:
    r"""A file name as Unicode text: bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown(path: str) -> str:
    """A file name, or any text, on one printable line, for messages."""
    with suppress(UnicodeEncodeError):  # a lone surrogate that stands for no byte
        path = lossless(path)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path
    )


def reason(error: Exception) -> str:
    """The first line of an error, without a path or a closing full stop."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = words.strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
