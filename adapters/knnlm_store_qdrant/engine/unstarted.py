"""What a user is told of an engine that did not start."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from knnlm_store.errors import BackendUnavailable, StoreCorrupt, StoreError, StoreNotWritable

_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


def not_started(path: Path, said: dict[str, Any]) -> StoreError:
    """Make the error of an engine that did not start."""
    error, kind = str(said.get("error")), said.get("kind")
    if kind == "in use":
        return BackendUnavailable(
            error, hint="Wait until it has finished, or end it, then run this again."
        )
    if kind == "corrupt":
        return StoreCorrupt(error, hint="Restore the folder from a copy.")
    if kind == "foreign":
        return StoreCorrupt(error, hint="Give another folder, one that is new or empty.")
    if kind == "system" and said.get("errno") in _NOT_ALLOWED:
        return StoreNotWritable(
            f"{path} cannot be used: the Qdrant engine must write there, even to read.",
            hint="Give this user permission to write there, or copy the folder and use the copy.",
        )
    if kind == "system":
        return StoreNotWritable(
            f"{path} cannot be used as a folder of datastores: {error}",
            hint="Give another folder, or this user permission to write there.",
        )
    return BackendUnavailable(
        f"The Qdrant engine for {path} did not start: {error}",
        hint="Check the installation: pip install 'knnlm-store[qdrant]'",
    )
