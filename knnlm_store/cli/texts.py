"""Text that comes as an argument, from standard input or from a file."""

from __future__ import annotations

import sys
from pathlib import Path

from knnlm_store.errors import CorpusError, UsageError


def from_stdin(what: str, hint: str) -> str:
    """Read standard input. Raises UsageError where nobody pipes in, or it is not UTF-8."""
    if sys.stdin.isatty():
        raise UsageError(f"There is no {what}.", hint=hint)
    return _decoded(sys.stdin.buffer.read(), "Standard input")


def from_file(path: Path) -> str:
    """Read a file. Raises CorpusError where it cannot be read, UsageError where it is not UTF-8."""
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read: {error.strerror}.", hint="Name a file of text."
        ) from error


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8: byte {error.start} cannot be read.",
            hint="Convert it first, for example with iconv.",
        ) from error
