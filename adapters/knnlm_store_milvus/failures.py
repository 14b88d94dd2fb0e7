"""The one place where errors of pymilvus, gRPC and Milvus Lite become ours."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
from pymilvus import exceptions as vendor
from pymilvus.grpc_gen import common_pb2

from knnlm_store.errors import (
    BackendUnavailable,
    StorageFull,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
)

log = logging.getLogger("knnlm_store.milvus")

# pymilvus logs a traceback for every error it raises, and Milvus Lite for every one it answers.
for _name in ("pymilvus", "milvus_lite"):
    if logging.getLogger(_name).level in (logging.NOTSET, logging.WARNING):
        logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

Maker = Callable[[str, str], StoreError]
"""Makes an error from where it happened and what the vendor said."""


class NotLoaded(BackendUnavailable):
    """A collection is not in memory: after a restart not yet, or somebody released it."""


def unreachable(where: str, said: str) -> BackendUnavailable:
    """Make the error of a server that does not answer; it hangs up alike on a wrong token."""
    return BackendUnavailable(
        f"Milvus at {where} is not reachable, or refuses the token ({said}).",
        hint="Check that it runs, with TLS if the URI is milvuss://, and KNNLM_MILVUS_TOKEN.",
    )


def too_slow(where: str, said: str) -> BackendUnavailable:
    """Make the error of a call whose deadline passed."""
    return BackendUnavailable(
        f"Milvus at {where} did not answer in time ({said}).",
        hint="Try again, or raise KNNLM_MILVUS_TIMEOUT, which is in seconds.",
    )


def busy(where: str, said: str) -> BackendUnavailable:
    """Make the error of a server that refuses for now."""
    return BackendUnavailable(
        f"Milvus at {where} is busy or not ready ({said}).", hint="Try again in a while."
    )


def not_loaded(where: str, said: str) -> NotLoaded:
    """Make the error of a collection that must be loaded, again or at last."""
    return NotLoaded(
        f"A collection in Milvus at {where} is not loaded ({said}).", hint="Try again in a while."
    )


def absent(where: str, said: str = "") -> StoreNotFound:
    """Make the error of a datastore or alias that is not there."""
    return StoreNotFound(
        f"There is no datastore at {where}{said and f' ({said})'}.",
        hint="Check the URI, or ingest to create it.",
    )


def no_database(where: str, said: str) -> StoreNotFound:
    """Make the error of a database that is not there."""
    return StoreNotFound(
        f"There is no database at {where} ({said}).", hint="Create it in Milvus, or leave it out."
    )


def full(where: str, said: str) -> StorageFull:
    """Make the error of a server that has no room."""
    return StorageFull(
        f"Milvus at {where} has no room left ({said}).",
        hint="Free some space or raise its quota, then run this again.",
    )


def forbidden(where: str, said: str) -> StoreNotWritable:
    """Make the error of a user who may not do this."""
    return StoreNotWritable(
        f"Milvus at {where} does not let this user do that ({said}).",
        hint="Set KNNLM_MILVUS_TOKEN to USER:PASSWORD of a user who may.",
    )


def too_large(where: str, said: str) -> StoreError:
    """Make the error of a message beyond gRPC's or the server's limit."""
    return StoreError(
        f"A request to Milvus at {where} or its answer is too large ({said}).",
        hint="Search for fewer neighbours, or in smaller batches.",
    )


def failed(where: str, said: str) -> StoreError:
    """Make the error of anything else that Milvus refuses or fails at."""
    return StoreError(f"Milvus at {where} failed: {said}.", hint="See the server's log.")


BY_STATUS: dict[grpc.StatusCode, Maker] = dict.fromkeys(grpc.StatusCode, failed) | {
    grpc.StatusCode.UNAVAILABLE: unreachable,
    grpc.StatusCode.CANCELLED: unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: too_slow,
    grpc.StatusCode.ABORTED: busy,
    grpc.StatusCode.RESOURCE_EXHAUSTED: busy,  # a rate limit, unless its words say otherwise
    grpc.StatusCode.UNAUTHENTICATED: forbidden,
    grpc.StatusCode.PERMISSION_DENIED: forbidden,
}
"""What gRPC itself reports."""

BY_CODE: dict[int, Maker] = {
    vendor.ErrorCode.UNEXPECTED_ERROR: failed,
    2: unreachable,
    3: busy,  # memory
    4: busy,  # too many requests
    7: full,
    vendor.ErrorCode.RATE_LIMIT: busy,
    vendor.ErrorCode.FORCE_DENY: busy,  # a quota is used up; the words tell if it is the disk's
    11: busy,
    12: busy,
    vendor.ErrorCode.COLLECTION_NOT_FOUND: absent,
    101: not_loaded,
    103: not_loaded,
    201: not_loaded,
    202: not_loaded,
    401: busy,
    503: busy,
    vendor.ErrorCode.INDEX_NOT_FOUND: busy,  # whoever creates the datastore is not done
    800: no_database,
    901: busy,
    1400: forbidden,
    1401: forbidden,
    1600: absent,  # alias
}
"""What Milvus reports; a code that is not here has failed for good, unless it says otherwise."""

BY_OLD_CODE: dict[int, Maker] = {
    common_pb2.ForceDeny: busy,
    common_pb2.RateLimit: busy,
    common_pb2.InsufficientMemoryToLoad: busy,
    common_pb2.MemoryQuotaExhausted: busy,
    common_pb2.DiskQuotaExhausted: full,
    common_pb2.TimeTickLongDelay: busy,
}
"""What servers before 2.4 report beside a code that says nothing."""

BY_CLASS: dict[type[vendor.MilvusException], Maker] = dict.fromkeys(
    (
        vendor.ConnectError,
        vendor.MilvusUnavailableException,
        vendor.ConnectionNotExistException,
    ),
    unreachable,
) | {
    vendor.CollectionNotExistException: absent,
    vendor.SchemaMismatchRetryableException: busy,  # made again by another, in another way
}
"""Classes that say more than their code."""

_FULL = ("no space left", "disk quota", "disk full", "not enough disk", "insufficient disk")
_LATE = ("context done", "context deadline exceeded", "context canceled")
_DENIED = ("permission deny", "privilege", "auth check failure", "unauthenticated")
_LARGE = ("larger than max", "message size", "message too large")
_BUSY = ("rate limit", "quota exceeded", "memory quota", "too many requests")
_RELEASED = ("collection not loaded", "has not been loaded")
_ABSENT = ("collection not found", "can't find collection")
_SHORT = 3  # characters of a password that stands in sentences by chance


@contextmanager
def mapped(where: str, token: str = "") -> Iterator[None]:
    """Raise errors of the libraries below as a StoreError about the datastore at `where`.

    `token` is taken out of what they said, whatever it repeats.
    """
    try:
        yield
    except vendor.MilvusException as error:
        _raise(_of_milvus(error), where, error.message, error, token)
    except grpc.RpcError as error:
        code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
        details = error.details() if hasattr(error, "details") else ""
        _raise(_of_text(details) or BY_STATUS[code], where, details, error, token)
    except grpc.FutureTimeoutError as error:
        _raise(too_slow, where, "no answer", error, token)
    except ValueError as error:
        # gRPC's word for a channel that another thread closed meanwhile.
        if "closed channel" not in str(error):
            raise
        _raise(unreachable, where, "the connection was closed", error, token)


def redacted(said: str, token: str) -> str:
    """Take a token, as it is sent or not, and the password in it, out of a text."""
    password = token.partition(":")[2]
    sent = b64encode(token.encode()).decode()
    for secret in (token, sent, password if len(password) > _SHORT else ""):
        said = said.replace(secret, "***") if secret else said
    return said


def _raise(make: Maker, where: str, said: object, error: Exception, token: str) -> NoReturn:
    """Raise our error from the first words of the vendor's, which is its cause if it may be."""
    whole = "".join(traceback.format_exception(error))
    shown = redacted(whole, token)
    log.debug("%s: %s", where, shown.rstrip())
    words = " ".join(redacted(str(said or type(error).__name__), token).split()).rstrip(".")
    ours = make(where, words if len(words) <= 300 else words[:300] + "...")
    raise ours from (error if shown == whole else None)


def _of_milvus(error: vendor.MilvusException) -> Maker:
    code = error.code
    if isinstance(code, grpc.StatusCode):  # a call that the client gave up repeating
        return _of_text(error.message) or BY_STATUS[code]
    known = BY_CLASS.get(type(error)) or BY_CODE.get(code)
    if known is busy:
        return full if _of_text(error.message) is full else busy
    if known and known is not failed:
        return known
    told = BY_OLD_CODE.get(error.compatible_code) or _of_text(error.message)
    return told or (busy if error.retriable else failed)


_BY_WORDS: tuple[tuple[tuple[str, ...], Maker], ...] = (
    (_FULL, full),
    (_DENIED, forbidden),
    (_LARGE, too_large),
    (_LATE, too_slow),  # the server noticed the deadline first
    (_ABSENT, absent),
    (_RELEASED, not_loaded),
    (_BUSY, busy),
)


def _of_text(said: object) -> Maker | None:
    """What only the words tell: older servers answer most things with code 65535."""
    text = str(said).lower()
    for words, make in _BY_WORDS:
        if any(word in text for word in words):
            return make
    return None
