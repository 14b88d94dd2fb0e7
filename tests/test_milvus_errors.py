"""Whatever goes wrong below ends as one sentence of ours."""

from __future__ import annotations

import inspect
import logging
import traceback
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pymilvus import exceptions as vendor
from pymilvus.grpc_gen import common_pb2

from knnlm_store.errors import (
    BackendUnavailable,
    StorageFull,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
)
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend, failures
from knnlm_store_milvus.failures import NotLoaded, mapped
from tests.milvus_support import created, lite, served

__all__ = ["lite"]

CLASSES = [
    held
    for _, held in inspect.getmembers(vendor, inspect.isclass)
    if issubclass(held, BaseException)
]

OURS = {
    vendor.MilvusException,
    vendor.ParamError,
    vendor.DescribeCollectionException,
    vendor.PartitionAlreadyExistException,
    vendor.IndexNotExistException,
    vendor.AmbiguousIndexName,
    vendor.CannotInferSchemaException,
    vendor.SchemaNotReadyException,
    vendor.DataTypeNotMatchException,
    vendor.DataTypeNotSupportException,
    vendor.DataNotMatchException,
    vendor.ConnectionConfigException,
    vendor.PrimaryKeyException,
    vendor.PartitionKeyException,
    vendor.ClusteringKeyException,
    vendor.FieldsTypeException,
    vendor.FunctionsTypeException,
    vendor.FieldTypeException,
    vendor.AutoIDException,
    vendor.InvalidConsistencyLevel,
    vendor.ServerVersionIncompatibleException,
}
"""Classes that are known, and of which the code says what they mean."""

BUSY, TOO_MUCH = BackendUnavailable, grpc.StatusCode.RESOURCE_EXHAUSTED
QUOTA = "quota exceeded, please allocate more resources"
TOKEN = "root:S3cret"
SENT = b64encode(TOKEN.encode()).decode()


class Broken(grpc.RpcError):  # type: ignore[misc]
    """What a channel raises."""

    def __init__(self, code: grpc.StatusCode, details: str = "words") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def ours(error: Exception) -> StoreError:
    with pytest.raises(StoreError) as told, mapped("here"):
        raise error
    assert told.value.__cause__ is error
    assert told.value.hint
    assert "here" in str(told.value)
    return told.value


@pytest.mark.parametrize("kind", CLASSES)
def test_every_exception_is_known(kind: type[vendor.MilvusException]) -> None:
    assert (kind in failures.BY_CLASS) != (kind in OURS)
    ours(kind(message="words"))


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_is_known(code: grpc.StatusCode) -> None:
    transient = code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    for error in (Broken(code), vendor.MilvusException(code, "gave up")):
        assert ours(error).retryable == transient


@pytest.mark.parametrize("code", [c for c in vendor.ErrorCode if c])
def test_every_code_is_known(code: int) -> None:
    assert code in failures.BY_CODE
    ours(vendor.MilvusException(code, "words"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (vendor.MilvusException(2, "Fail connecting"), BackendUnavailable),
        (vendor.MilvusException(101, "collection not loaded"), NotLoaded),
        (vendor.MilvusException(65535, "collection law has not been loaded"), NotLoaded),
        (vendor.MilvusException(65535, "failed: collection not loaded"), NotLoaded),
        (vendor.MilvusException(8, "rate limit exceeded"), BackendUnavailable),
        (vendor.MilvusException(65535, "rate limit exceeded"), BackendUnavailable),
        (vendor.MilvusException(9, "quota exceeded[reason=rate type: DMLInsert]"), BUSY),
        (vendor.MilvusException(9, f"quota exceeded[reason=memory {QUOTA}]"), BUSY),
        (vendor.MilvusException(9, f"quota exceeded[reason=disk {QUOTA}]"), StorageFull),
        (vendor.MilvusException(65535, f"memory {QUOTA}"), BUSY),
        (vendor.MilvusException(65535, f"disk {QUOTA}"), StorageFull),
        (vendor.MilvusException(0, "later", common_pb2.RateLimit), BUSY),
        (vendor.MilvusException(0, "later", common_pb2.MemoryQuotaExhausted), BUSY),
        (vendor.MilvusException(0, "no", common_pb2.DiskQuotaExhausted), StorageFull),
        (vendor.MilvusException(10, "service unimplemented"), StoreError),
        (vendor.MilvusException(5, "later", retriable=True), BackendUnavailable),
        (vendor.MilvusException(100, "collection not found"), StoreNotFound),
        (vendor.DescribeCollectionException(100, "can't find collection"), StoreNotFound),
        (vendor.MilvusException(65535, "can't find collection law"), StoreNotFound),
        (vendor.MilvusException(800, "database not found"), StoreNotFound),
        (vendor.MilvusException(1600, "alias not found"), StoreNotFound),
        (vendor.MilvusException(7, "disk limit exceeded"), StorageFull),
        (vendor.MilvusException(65535, "write: no space left on device"), StorageFull),
        (vendor.MilvusException(1401, "not permitted"), StoreNotWritable),
        (Broken(grpc.StatusCode.PERMISSION_DENIED), StoreNotWritable),
        (Broken(grpc.StatusCode.UNKNOWN, "PrivilegeInsert: permission deny"), StoreNotWritable),
        (Broken(TOO_MUCH, "grpc: received message larger than max (9 vs. 5)"), StoreError),
        (Broken(TOO_MUCH, "CLIENT: Sent message larger than max (9 vs. 5)"), StoreError),
        (Broken(TOO_MUCH, "message size exceeds the limit of 4194304"), StoreError),
        (Broken(TOO_MUCH, "too many requests"), BUSY),
        (Broken(TOO_MUCH, ""), BUSY),
        (Broken(TOO_MUCH, "disk quota exceeded"), StorageFull),
        (Broken(grpc.StatusCode.DEADLINE_EXCEEDED), BackendUnavailable),
        (grpc.FutureTimeoutError(), BackendUnavailable),
        (ValueError("Cannot invoke RPC on closed channel!"), BackendUnavailable),
        (vendor.MilvusException(65535, "proxy TaskCondition context Done"), BackendUnavailable),
        (vendor.MilvusException(65535, "nobody knows"), StoreError),
    ],
    ids=str,
)
def test_what_it_becomes(error: Exception, kind: type[StoreError]) -> None:
    assert type(ours(error)) is kind


@pytest.mark.parametrize("said", ["bad credential root:S3cret", "wrong S3cret", SENT])
@pytest.mark.parametrize(
    "make",
    [
        lambda said: vendor.MilvusException(1, said),
        lambda said: vendor.MilvusException(2, said),
        lambda said: Broken(grpc.StatusCode.UNAUTHENTICATED, said),
    ],
    ids=["code 1", "code 2", "status"],
)
def test_secrets_are_shown_nowhere(
    caplog: pytest.LogCaptureFixture, make: Callable[[str], Exception], said: str
) -> None:
    """Not in what we say or log, nor in the traceback of an error that nobody caught."""
    caplog.set_level(logging.DEBUG, "knnlm_store.milvus")
    with pytest.raises(StoreError) as told, mapped("here", TOKEN):
        raise make(said)
    printed = "".join(traceback.format_exception(told.value))
    shown = [str(told.value), repr(told.value), told.value.hint, caplog.text, printed]
    assert "***" in str(told.value)
    assert type(make(said)).__name__ in caplog.text
    for secret in ("S3cret", SENT):
        assert secret not in "".join(shown)


def test_short_passwords_leave_sentences_whole() -> None:
    with pytest.raises(StoreError, match="not reachable") as told, mapped("here", "root:a"):
        raise vendor.MilvusException(2, "a bad token root:a")
    assert "(a bad token ***)" in str(told.value)


def test_connection_knows_its_secret(
    lite: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What answers repeats the token in an error, and in a row that cannot be read."""
    monkeypatch.setenv("KNNLM_MILVUS_TOKEN", TOKEN)
    created(lite).close()
    caplog.set_level(logging.DEBUG, "knnlm_store.milvus")
    with served(lite) as (there, _):
        store = MilvusBackend.connect(there)
        client = store._connected()._client
        refusal = vendor.MilvusException(1, f"bad credential {TOKEN}")
        monkeypatch.setattr(client, "query", lambda *_, **__: raise_(refusal))
        with pytest.raises(StoreError, match=r"bad credential \*\*\*") as told:
            store.count()
        monkeypatch.setattr(client, "query", lambda *_, **__: [{"count(*)": TOKEN}])
        with pytest.raises(StoreError, match=r"cannot be read .*\*\*\*") as read:
            store.count()
        store.close()
    assert "S3cret" not in str(told.value) + str(read.value) + caplog.text


def raise_(error: Exception) -> Any:
    raise error


def test_other_errors_are_bugs() -> None:
    for error in (ValueError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error)), mapped("here"):
            raise error


def test_a_long_complaint_is_one_short_line() -> None:
    said = str(ours(vendor.MilvusException(65535, "line\n" * 500)))
    assert len(said) < 400
    assert "\n" not in said


def test_nothing_is_printed(lite: Location, capfd: pytest.CaptureFixture[str]) -> None:
    """pymilvus and Milvus Lite would print a traceback for each error."""
    store = created(lite)
    with pytest.raises(StoreNotFound):
        store._connected().query("missing", "", ["id"])
    with pytest.raises(StoreError):
        store._connected().query("law", "no such expression", ["id"])
    store.close()
    assert capfd.readouterr() == ("", "")
