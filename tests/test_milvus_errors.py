"""Whatever goes wrong below ends as one sentence of ours."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest
from pymilvus import exceptions as vendor

from knnlm_store.errors import (
    BackendUnavailable,
    KnnlmError,
    StorageFull,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
    UsageError,
)
from knnlm_store.values import Location
from knnlm_store_milvus import failures
from knnlm_store_milvus.failures import mapped
from tests.milvus_support import created, keys, lite

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


class Broken(grpc.RpcError):  # type: ignore[misc]
    """What a channel raises."""

    def __init__(self, code: grpc.StatusCode, details: str = "words") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def ours(error: Exception) -> KnnlmError:
    with pytest.raises(KnnlmError) as told, mapped("here"):
        raise error
    assert told.value.__cause__ is error
    assert told.value.hint
    assert "here" in str(told.value)
    return told.value


@pytest.mark.parametrize("kind", CLASSES)
def test_every_exception_is_known(kind: type[vendor.MilvusException]) -> None:
    assert (kind in failures.BY_CLASS) != (kind in OURS)
    assert isinstance(ours(kind(message="words")), KnnlmError)


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_is_known(code: grpc.StatusCode) -> None:
    transient = code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
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
        (vendor.MilvusException(101, "collection not loaded"), BackendUnavailable),
        (vendor.MilvusException(8, "rate limit exceeded"), BackendUnavailable),
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
        (Broken(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"), UsageError),
        (Broken(grpc.StatusCode.DEADLINE_EXCEEDED), BackendUnavailable),
        (grpc.FutureTimeoutError(), BackendUnavailable),
        (ValueError("Cannot invoke RPC on closed channel!"), BackendUnavailable),
        (vendor.MilvusException(65535, "proxy TaskCondition context Done"), BackendUnavailable),
        (vendor.MilvusException(65535, "nobody knows"), StoreError),
    ],
    ids=str,
)
def test_what_it_becomes(error: Exception, kind: type[KnnlmError]) -> None:
    assert type(ours(error)) is kind


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


REPLIES: list[Any] = [
    [],
    [[], []],
    [None],
    [[{"entity": {"token": 1}}]],
    [[{}]],
    ["nonsense"],
]


@pytest.mark.parametrize("reply", REPLIES, ids=str)
def test_reply_that_cannot_be_read(
    lite: Location, monkeypatch: pytest.MonkeyPatch, reply: Any
) -> None:
    store = created(lite)
    monkeypatch.setattr(store._connected()._client, "search", lambda *_, **__: reply)
    with pytest.raises(StoreError, match="cannot be read"):
        store.search(keys(1), 3)
    store.close()


def test_rows_that_cannot_be_read(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    store = created(lite)
    monkeypatch.setattr(store._connected()._client, "query", lambda *_, **__: [{"other": 1}])
    for read in (store.count, lambda: list(store.scan()), lambda: store.get_records(["manifest"])):
        with pytest.raises(StoreError, match="cannot be read"):
            read()
    store.close()
