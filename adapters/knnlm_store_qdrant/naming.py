"""Names: of a datastore, of the collection of its entries, and of that of its records."""

from __future__ import annotations

import re

from knnlm_store.errors import UsageError

RECORDS = ".records"
_LONGEST = 255  # what Qdrant takes


def collection_of(name: str) -> str:
    """Name the collection of a datastore's entries; any text becomes letters Qdrant takes.

    Raises UsageError for a name that is empty or too long.
    """
    escaped = "".join(c if re.fullmatch("[A-Za-z0-9_.-]", c) else _escape(c) for c in name)
    if escaped in (".", "..") or escaped.endswith(RECORDS):
        # the last dot, for `.` is no name and NAME.records belongs to NAME
        head, _, tail = escaped.rpartition(".")
        escaped = f"{head}{_escape('.')}{tail}"
    if not name or len(escaped + RECORDS) > _LONGEST:
        raise UsageError(
            f"{name!r} cannot name a datastore on Qdrant.",
            hint=f"Take 1 to {_LONGEST - len(RECORDS)} letters, digits, '-', '_' and '.'.",
        )
    return escaped


def records_of(collection: str) -> str:
    """Name the collection of the records beside a collection of entries."""
    return collection + RECORDS


def name_of(collection: str) -> str | None:
    """Read a datastore's name from its collection's; None for one that is not ours."""
    try:
        raw = re.sub(
            rb"~([0-9A-F]{2})",
            lambda match: bytes([int(match[1], 16)]),
            collection.encode(),
        )
        name = raw.decode(errors="surrogateescape")
        return name if collection_of(name) == collection else None
    except UsageError:
        return None


def datastores(collections: list[str]) -> dict[str, str]:
    """Find the pairs of collections among all of a server: datastore's name to collection."""
    there = set(collections)
    pairs = ((name_of(c), c) for c in collections if records_of(c) in there)
    return {name: collection for name, collection in pairs if name is not None}


def _escape(character: str) -> str:
    return "".join(f"~{byte:02X}" for byte in character.encode(errors="surrogateescape"))
