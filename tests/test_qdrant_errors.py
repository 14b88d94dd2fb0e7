"""Whatever goes wrong below ends as one sentence of ours."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import httpx
import pydantic
import pytest
import qdrant_client
from qdrant_client import models
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
from knnlm_store_qdrant.failures import mapped
from tests import qdrant_support as support

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store


def all_under(base: type[BaseException]) -> Iterator[type[BaseException]]:
    yield base
    for child in base.__subclasses__():
        yield from all_under(child)


def raised(error: BaseException, secret: str | None = None) -> StoreError:
    """What the adapter makes of an error."""
    with pytest.raises(StoreError) as caught, mapped("there:6333", secret):
        raise error
    assert caught.value.hint
    assert "there:6333" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def refused(status: int, words: object = "no") -> UnexpectedResponse:
    body = words if isinstance(words, bytes) else json.dumps({"status": {"error": words}}).encode()
    return UnexpectedResponse(status, "", body, httpx.Headers())


# -- the vendor's errors -----------------------------------------------------------------------


def test_every_error_of_the_client_is_mapped() -> None:
    """A new one, in a newer client, must be looked at here."""
    for module in pkgutil.walk_packages(qdrant_client.__path__, "qdrant_client."):
        if "exception" in module.name:
            import_module(module.name)
    of_client = {k for base in (ApiException, QdrantException) for k in all_under(base)}
    made: dict[type[BaseException], BaseException] = {
        ApiException: ApiException(),
        QdrantException: QdrantException(),
        UnexpectedResponse: refused(500),
        ResponseHandlingException: ResponseHandlingException(httpx.ConnectError("x")),
        ResourceExhaustedResponse: ResourceExhaustedResponse("slower", 7),
    }
    assert of_client == set(made)
    for error in made.values():
        assert raised(error).retryable
    assert "Wait 7 s" in raised(made[ResourceExhaustedResponse]).hint


OURS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
HTTP_ERRORS = {*all_under(httpx.HTTPError), *all_under(httpx.StreamError), httpx.InvalidURL}


@pytest.mark.parametrize("kind", sorted(HTTP_ERRORS, key=str), ids=lambda kind: kind.__name__)
def test_every_error_of_http_is_mapped(kind: type[Exception]) -> None:
    """Those of the wire are worth another try; those of what was said on it are not."""
    failure = raised(ResponseHandlingException(_made(kind)))
    of_the_wire = issubclass(kind, httpx.TransportError) and not issubclass(kind, OURS)
    assert failure.retryable == of_the_wire
    assert isinstance(failure, BackendUnavailable) == of_the_wire
    assert "secret" not in str(failure)


def _made(kind: type[Exception]) -> Exception:
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://there")
        return kind("secret", request=request, response=httpx.Response(500))
    try:
        return kind("secret")
    except TypeError:
        return kind()


STATUSES: dict[str, tuple[UnexpectedResponse, type[StoreError], str]] = {
    "no key": (refused(401, b"Must provide an API key"), StoreError, "refused the API key"),
    "weak key": (refused(403, "Write access"), StoreNotWritable, "refused the API key"),
    "missing": (refused(404, "Collection `x` doesn't exist!"), StoreNotFound, "`x` doesn't exist"),
    "taken": (refused(409, "Collection `x` already exists!"), StoreExists, "already exists"),
    "taken, older": (refused(400, "`x` already exists!"), StoreExists, "already exists"),
    "bad": (refused(400, "Wrong input: \n dim"), StoreError, "(status 400): Wrong input: dim"),
    "long": (refused(422, "x" * 900), StoreError, "xxx ..."),
    "large": (refused(413, b""), StoreError, "too large"),
    "large, in words": (refused(400, "payload is larger than allowed"), StoreError, "too large"),
    "busy": (refused(429), BackendUnavailable, "cannot serve this now"),
    "slow": (refused(408, b"x"), BackendUnavailable, "cannot serve this now"),
    "broken": (refused(500, "panic"), BackendUnavailable, "(status 500: panic)"),
    "gateway": (refused(502, b"<html>"), BackendUnavailable, "(status 502)"),
    "not here": (refused(501, "no snapshots"), StoreError, "no snapshots"),
    "full": (refused(507, "x"), StorageFull, "No space is left"),
    "full, in words": (refused(500, "No space left on device"), StorageFull, "No space is left"),
    "full, in text": (refused(500, b"No space left on device"), StorageFull, "No space is left"),
    "another's page": (refused(404, b"<html>"), StoreError, "is not Qdrant"),
    "moved": (refused(301, b""), StoreError, "is not Qdrant"),
    "odd": (refused(418, ["teapot"]), StoreError, "is not Qdrant"),
}


@pytest.mark.parametrize("case", STATUSES)
def test_statuses(case: str) -> None:
    error, kind, words = STATUSES[case]
    failure = raised(error)
    assert type(failure) is kind
    assert words in str(failure)
    assert len(str(failure)) < 450


def test_other_errors() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        models.VectorParams.model_validate({"size": "x"})
    assert type(raised(ResponseHandlingException(caught.value))) is StoreCorrupt
    assert type(raised(ResponseHandlingException(OSError("x")))) is StoreError
    assert type(raised(AssertionError("Count returned None"))) is StoreCorrupt
    assert "***" in str(raised(refused(400, "your key k3y is odd"), secret="k3y"))
    with pytest.raises(ZeroDivisionError), mapped("there"):
        raise ZeroDivisionError  # a bug of ours stays one
