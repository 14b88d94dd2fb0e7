"""One target at a time: a text file to a document, JSON lines to rows."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from knnlm_store.corpus.inputs import Target
from knnlm_store.corpus.rows import Row
from knnlm_store.corpus.values import Document, Problem, ReadOptions, id_of, reason, surrogate

_SNIFFED = 8192


def text_document(stream: BinaryIO, target: Target, options: ReadOptions) -> Document | Problem:
    """The one document of a text file. Line ends stay as they are: keys depend on every byte."""
    head = stream.read(_SNIFFED)
    if what := _binary(head, options.encoding):
        return Problem(target.where, what, failed=True)
    data = head + stream.read()
    try:
        text = _decode(data, options.encoding)
    except UnicodeError as error:
        return Problem(target.where, _undecodable(error), failed=True)
    if surrogate(text):
        return Problem(target.where, "The text holds a lone surrogate.", failed=True)
    if not text or text.isspace():
        document = id_of(target.source, target.name)
        return Problem(target.where, "The document is empty.", failed=False, document=document)
    return Document(target.source, target.name, text, dict(options.metadata), len(data))


def _binary(head: bytes, encoding: str) -> str:
    """Why this is no text, or nothing. Wide encodings write NUL bytes as a matter of course."""
    if b"\0" not in head or b"\0" in "a".encode(encoding):
        return ""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"The file is UTF-16, not {encoding}; give its encoding."
    return "The file is binary: it holds NUL bytes."


def _decode(data: bytes, encoding: str) -> str:
    utf8 = codecs.lookup(encoding).name == "utf-8"
    return data.decode("utf-8-sig" if utf8 else encoding)


def _undecodable(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"The bytes are not {error.encoding}: 0x{byte:02x} at offset {error.start}."
    return f"The bytes cannot be decoded: {reason(error)}."


def json_rows(stream: BinaryIO, where: str) -> Iterator[Row | Problem]:
    """The rows of JSON lines, plain or compressed with gzip; blank lines are none."""
    position = 0
    lines = gzip.GzipFile(fileobj=stream) if where.lower().endswith(".gz") else stream
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            # Compressed bytes are what progress counts, and a stream may not tell.
            position = stream.tell() if lines is not stream else position + len(line)
            if line.strip():
                yield _json_row(line, number, f"{where}:{number}", position)
    except (OSError, EOFError, zlib.error) as error:
        what = f"The file cannot be read further: {reason(error)}."
        yield Problem(f"{where}:{number + 1}", what, failed=True)


def _json_row(line: bytes, number: int, where: str, position: int) -> Row | Problem:
    try:
        text = line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
        values = json.loads(text)
    except UnicodeDecodeError as error:
        return Problem(where, _undecodable(error), failed=True)
    except json.JSONDecodeError as error:
        what = f"The line is not JSON: {error.msg} at column {error.colno}."
        return Problem(where, what, failed=True)
    except (ValueError, RecursionError) as error:  # digits or nesting beyond Python's limits
        return Problem(where, f"The line is not JSON: {reason(error)}.", failed=True)
    if not isinstance(values, dict):
        what = f"The line is not a JSON object but {type(values).__name__}."
        return Problem(where, what, failed=True)
    return Row(where, number, values, position)
