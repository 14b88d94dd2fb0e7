"""The one place where errors of pymilvus, gRPC and Milvus Lite become ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from pymilvus import exceptions as vendor

from knnlm_store.errors import (
    BackendUnavailable,
    StorageFull,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
    UsageError,
)

log = logging.getLogger("knnlm_store.milvus")

# pymilvus logs a traceback for every error it raises, and Milvus Lite for every one it answers.
for _name in ("pymilvus", "milvus_lite"):
    if logging.getLogger(_name).level in (logging.NOTSET, logging.WARNING):
        logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

Maker = Callable[[str, str], StoreError | UsageError]
"""Makes an error from where it happened and what the vendor said."""


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


def too_large(where: str, said: str) -> UsageError:
    """Make the error of a message beyond gRPC's or the server's limit."""
    return UsageError(
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
    grpc.StatusCode.RESOURCE_EXHAUSTED: too_large,
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
    vendor.ErrorCode.FORCE_DENY: full,  # a quota, of disk or memory, is used up
    10: busy,
    vendor.ErrorCode.COLLECTION_NOT_FOUND: absent,
    101: busy,  # a collection that is not loaded yet, after a restart
    103: busy,
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


@contextmanager
def mapped(where: str) -> Iterator[None]:
    """Raise errors of the libraries below as a KnnlmError about the datastore at `where`."""
    try:
        yield
    except vendor.MilvusException as error:
        raise _logged(_of_milvus(error), where, error.message, error) from error
    except grpc.RpcError as error:
        code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
        details = error.details() if hasattr(error, "details") else ""
        raise _logged(_of_text(details) or BY_STATUS[code], where, details, error) from error
    except grpc.FutureTimeoutError as error:
        raise _logged(too_slow, where, "no answer", error) from error
    except ValueError as error:
        # gRPC's word for a channel that another thread closed meanwhile.
        if "closed channel" not in str(error):
            raise
        raise _logged(unreachable, where, "the connection was closed", error) from error


def _logged(make: Maker, where: str, said: object, error: Exception) -> StoreError | UsageError:
    """Make our error from the first words of the vendor's."""
    log.debug("%s: %s", where, type(error).__name__, exc_info=error)
    words = " ".join(str(said or type(error).__name__).split()).rstrip(".")
    return make(where, words if len(words) <= 300 else words[:300] + "...")


def _of_milvus(error: vendor.MilvusException) -> Maker:
    code = error.code
    if isinstance(code, grpc.StatusCode):  # a call that the client gave up repeating
        return _of_text(error.message) or BY_STATUS[code]
    known = BY_CLASS.get(type(error)) or BY_CODE.get(code)
    if known and known is not failed:
        return known
    return _of_text(error.message) or (busy if error.retriable else failed)


def _of_text(said: object) -> Maker | None:
    """What only the words tell: older servers answer most things with code 65535."""
    text = str(said).lower()
    if any(words in text for words in _FULL):
        return full
    if any(words in text for words in _DENIED):
        return forbidden
    if any(words in text for words in _LATE):  # the server noticed the deadline first
        return too_slow
    return absent if "collection not found" in text or "can't find collection" in text else None
