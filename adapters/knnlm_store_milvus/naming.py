"""Names of datastores as names of collections, and back.

Milvus takes letters, digits and underscores. A plain name stays as it is; any other becomes `_`
and its UTF-8 bytes, of which all but letters and digits are written `_HH`. Neither form holds
`__` behind its first character, so that `NAME__records` is no datastore's main collection.
"""

from __future__ import annotations

import re

from knnlm_store.errors import UsageError

RECORDS = "__records"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_LONGEST = 255 - len(RECORDS)


def encode(name: str) -> str:
    """The collection of a datastore's entries. Raises UsageError for a name that is too long."""
    coded = name if _PLAIN.fullmatch(name) else "_" + "".join(map(_escaped, name.encode()))
    if not name or len(coded) > _LONGEST:
        raise UsageError(
            f"{name[:40]!r} cannot name a datastore in Milvus.",
            hint=f"Take 1 to {_LONGEST} letters, digits and underscores.",
        )
    return coded


def decode(collection: str) -> str | None:
    """The datastore whose entries are in `collection`; None if it can be none's."""
    if _PLAIN.fullmatch(collection):
        return collection
    try:
        raw = re.sub("_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), collection[1:])
        name = raw.encode("latin-1").decode()
        return name if collection == encode(name) else None
    except (UnicodeError, UsageError):
        return None


def records_of(collection: str) -> str:
    """The collection of records beside a main collection."""
    return collection + RECORDS


def _escaped(byte: int) -> str:
    letter = chr(byte)
    return letter if letter.isascii() and letter.isalnum() else f"_{byte:02x}"
