"""The one place where errors of the client, of HTTP and of the server become ours."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pydantic
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from knnlm_store.errors import (
    BackendUnavailable,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreExists,
    StoreNotFound,
    StoreNotWritable,
)

_CHECK = "Check that the server runs and that the address is right, then run this again."
_WAIT = "Wait a little, then run this again."
_KEY = "Set KNNLM_QDRANT_API_KEY, or KNNLM_QDRANT_API_KEY_FILE, to a key that may do this."

_NO_SPACE = re.compile(r"no space left|not enough (disk )?space|disk is full", re.IGNORECASE)
_TAKEN = re.compile(r"already exists", re.IGNORECASE)
_TOO_LARGE = re.compile(r"larger than allowed", re.IGNORECASE)
_LONGEST = 300  # characters of the server's own words that are repeated


@contextmanager
def mapped(place: str, secret: str | None = None) -> Iterator[None]:
    """Raise errors of the libraries below as a StoreError about the server at `place`.

    `secret` is taken out of what the server said, whatever it repeats.
    """
    try:
        yield
    except (ApiException, QdrantException) as error:
        raise _of_client(error, place, secret) from error
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError) as error:
        # the client passes these on: no JSON at all, and asserts that a reply has a result
        raise unreadable(place) from error


def unreadable(place: str, why: str = "") -> StoreCorrupt:
    """Make the error of a reply that is not what Qdrant sends."""
    return StoreCorrupt(
        f"Qdrant at {place} sent a reply that cannot be read{why and ': ' + why}.",
        hint="Check that this is a Qdrant server and that no proxy changes what it sends.",
    )


def _of_client(error: Exception, place: str, secret: str | None) -> StoreError:
    if isinstance(error, UnexpectedResponse):
        return _of_status(error.status_code or 0, _words(error.content, secret), place)
    if isinstance(error, ResponseHandlingException):
        return _of_source(error.source, place)
    wait = _WAIT
    if isinstance(error, ResourceExhaustedResponse):
        wait = f"Wait {error.retry_after_s} s, then run this again."
    return BackendUnavailable(f"Qdrant at {place} has too many requests.", hint=wait)


def _of_source(source: Exception, place: str) -> StoreError:
    """Tell what kept a request from being answered."""
    if (tls := _tls_error(source)) is not None:
        return _of_tls(tls, place)
    if isinstance(source, httpx.TimeoutException):
        return BackendUnavailable(
            f"Qdrant at {place} did not answer in time.",
            hint="Wait and run this again, or give it more seconds in KNNLM_QDRANT_TIMEOUT.",
        )
    if isinstance(source, httpx.ConnectError):
        return BackendUnavailable(f"Qdrant at {place} cannot be reached.", hint=_CHECK)
    if isinstance(source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        return StoreError(f"{place} cannot be asked over HTTP.", hint=_CHECK)
    if isinstance(source, httpx.TransportError):
        return BackendUnavailable(f"The connection to Qdrant at {place} broke.", hint=_CHECK)
    if isinstance(source, (httpx.HTTPError, httpx.StreamError, pydantic.ValidationError)):
        return unreadable(place)
    kind = type(source).__name__
    return StoreError(f"A request to Qdrant at {place} failed ({kind}).", hint=_CHECK)


def _of_tls(error: ssl.SSLError, place: str) -> BackendUnavailable:
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"The certificate of Qdrant at {place} is not trusted: {error.verify_message}."
        hint = "Name the file of the authority that signed it in KNNLM_QDRANT_CA."
    else:
        said = f"Qdrant at {place} does not speak TLS as expected ({error.reason})."
        hint = "Write qdrants:// for a server with TLS, qdrant:// for one without."
    failure = BackendUnavailable(said, hint=hint)
    failure.retryable = False  # it will not change by itself
    return failure


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Find the TLS error that lies under the HTTP client's, if any."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _of_status(status: int, words: str | None, place: str) -> StoreError:
    """Tell what the server refused; `words` are its own, None if it is not Qdrant that speaks."""
    if status == 507 or (words and _NO_SPACE.search(words)):
        return StorageFull(
            f"No space is left for Qdrant at {place}.",
            hint="Free some space there and run this again; what was committed is intact.",
        )
    if status in (401, 403):
        kind = StoreError if status == 401 else StoreNotWritable
        return kind(f"Qdrant at {place} refused the API key for this call.", hint=_KEY)
    if status in (408, 429) or (status >= 500 and status != 501):
        said = f": {words}" if words else ""
        return BackendUnavailable(
            f"Qdrant at {place} cannot serve this now (status {status}{said}).", hint=_WAIT
        )
    if status == 413 or (words and _TOO_LARGE.search(words)):
        return StoreError(
            f"A request is too large for Qdrant at {place}.",
            hint="Name fewer documents in one search, or raise the server's max_request_size_mb.",
        )
    if words is None:
        return StoreError(
            f"What answers at {place} is not Qdrant (status {status}).",
            hint="Check the address; Qdrant's REST port is 6333 unless it was changed.",
        )
    return _of_refusal(status, words, place)


def _of_refusal(status: int, words: str, place: str) -> StoreError:
    if status == 404:
        return StoreNotFound(
            f"Qdrant at {place} does not have that: {words}", hint="Check the datastore's name."
        )
    if status == 409 or (status == 400 and _TAKEN.search(words)):
        return StoreExists(
            f"The name is taken on Qdrant at {place}: {words}", hint="Take another name."
        )
    return StoreError(
        f"Qdrant at {place} refused a request (status {status}): {words}",
        hint="Check the limits and the version of the server.",
    )


def _words(content: bytes, secret: str | None) -> str | None:
    """Read Qdrant's sentence from the body of a refusal; None if it has none."""
    try:
        said = json.loads(content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        said = content.decode(errors="replace") if _NO_SPACE.search(str(content)) else None
    if not isinstance(said, str):
        return None
    if secret:
        said = said.replace(secret, "***")
    said = " ".join(said.split())
    return said if len(said) <= _LONGEST else said[: _LONGEST - 4] + " ..."
