"""HTML files that commands write: told early where that cannot be, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from knnlm_store.errors import UsageError
from knnlm_store.replacing import replace_file


def check_place(path: Path, what: str) -> None:
    """Raise UsageError if a page cannot be written there; nothing is written.

    what: the page in a word, for messages.
    """
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder, not a file for the {what}.",
            hint=f"Name a file, such as {path / f'{what}.html'}.",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"There is no folder {path.parent} for the {what}.", hint=f"mkdir -p {path.parent}"
        )
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise UsageError(
            f"The {what} cannot be written to {path}.", hint="Name a file in a folder of yours."
        )


def write(path: Path, text: str, what: str, *, hint: str) -> None:
    """Write a page, in the place of an earlier one. Raises UsageError if it cannot be written."""
    try:
        if _is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            replace_file(path, text.encode())
    except OSError as error:
        raise UsageError(
            f"The {what} could not be written to {path}: {error.strerror}.", hint=hint
        ) from error


def _is_special(path: Path) -> bool:
    """Whether it is there and no file, such as /dev/stdout: that is written to, not replaced."""
    return path.exists() and not path.is_file()
