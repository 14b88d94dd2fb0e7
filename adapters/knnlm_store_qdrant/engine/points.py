"""Points in and out: from JSON to the engine's objects, and from those to what JSON takes.

A vector is hundreds of numbers and a request thousands of vectors. They go straight from the
parser to the engine, which rejects all but numbers; the request round them is checked with
qdrant-client's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import qdrant_edge as edge
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from qdrant_client.http import models

from knnlm_store_qdrant.engine.filters import filter_of
from knnlm_store_qdrant.engine.refusal import Refused, only, translating, wrong

_MODES = {
    models.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}
_SEARCH = ("filter", "params", "query", "score_threshold", "limit", "offset", "using")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def parsed(body: bytes) -> Any:
    """Read JSON; raises Refused if it is none."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"Format error in JSON body: {error}") from error


def valid(kind: Any, value: Any) -> Any:
    """Check a parsed body against a model of qdrant-client; raises Refused."""
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(400, f"Format error in JSON body: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Insertion:
    """An upsert: the points, and the operation that writes them."""

    count: int
    operation: edge.UpdateOperation


def insertion(body: bytes, dimension: int) -> Insertion:
    """Read an upsert of either shape, all of it checked before any of it is written."""
    given = parsed(body)
    batch = isinstance(given, dict) and "batch" in given
    vectors = _taken_batch(given) if batch else _taken_points(given)
    checked = valid(models.PointsBatch if batch else models.PointsList, given)
    only(checked, ("batch", "points", "update_filter", "update_mode"))
    if batch:
        ids, payloads = given["batch"]["ids"], given["batch"].get("payloads")
        payloads = [None] * len(ids) if payloads is None else payloads
    else:
        ids = [point["id"] for point in given["points"]]
        payloads = [point.get("payload") for point in given["points"]]
    if not len(ids) == len(vectors) == len(payloads):
        raise wrong("ids, vectors and payloads of a batch must be equally many")
    for vector in vectors:
        _check_vector(vector, dimension)
    with translating():
        points = [edge.Point(*point) for point in zip(ids, vectors, payloads, strict=True)]
    mode = _MODES.get(checked.update_mode) if checked.update_mode else None
    condition = filter_of(checked.update_filter)
    return Insertion(len(ids), edge.UpdateOperation.upsert_points(points, condition, mode))


def _taken_points(given: Any) -> list[Any]:
    """Take the vectors out of a list of points, and leave empty ones."""
    points = given.get("points") if isinstance(given, dict) else None
    taken = []
    for point in points if isinstance(points, list) else ():
        if isinstance(point, dict) and isinstance(point.get("vector"), list):
            taken.append(point["vector"])
            point["vector"] = []
        else:
            taken.append({} if not isinstance(point, dict) else point.get("vector"))
    return taken


def _taken_batch(given: Any) -> list[Any]:
    """Take the vectors out of a batch, and leave none."""
    batch = given["batch"]
    taken = batch.get("vectors") if isinstance(batch, dict) else None
    if not isinstance(taken, list):
        return []
    batch["vectors"] = []
    return taken


def _check_vector(vector: Any, dimension: int) -> None:
    """Raise Refused unless it is a list of so many, or the {} of a point without a vector."""
    if isinstance(vector, list):
        if not dimension:
            raise wrong("Not existing vector name error: ")
        if vector and isinstance(vector[0], list):
            raise wrong("the embedded engine keeps one vector a point, not several")
        if len(vector) != dimension:
            raise wrong(f"Vector dimension error: expected dim: {dimension}, got {len(vector)}")
    elif vector != {}:
        raise wrong("the embedded engine keeps one unnamed vector a point")


def searches(body: bytes, batch: bool, dimension: int) -> list[edge.QueryRequest]:
    """Read one search, or a batch of them."""
    given = parsed(body)
    each = given.get("searches") if batch and isinstance(given, dict) else [given]
    vectors = [_taken_query(one) for one in each] if isinstance(each, list) else []
    if batch:
        checked = valid(models.QueryRequestBatch, given).searches
    else:
        checked = [valid(models.QueryRequest, given)]
    return [_search(*pair, dimension) for pair in zip(checked, vectors, strict=True)]


def _taken_query(given: Any) -> list[Any] | None:
    """Take the vector out of a search, and leave an empty one."""
    query = given.get("query") if isinstance(given, dict) else None
    holder, key = (query, "nearest") if isinstance(query, dict) else (given, "query")
    vector = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(vector, list):
        return None
    holder[key] = []
    return vector


def _search(
    given: models.QueryRequest, vector: list[Any] | None, dimension: int
) -> edge.QueryRequest:
    only(given, (*_SEARCH, "with_payload", "with_vector"))
    nearest = given.query
    if isinstance(nearest, models.NearestQuery):
        only(nearest, ("nearest",), "query.")
    if given.using:
        raise wrong(f"Not existing vector name error: {given.using}")
    if vector is None and nearest is not None:
        raise wrong("the embedded engine searches by a vector only")
    if vector is not None:
        _check_vector(vector, dimension)
    limit = 10 if given.limit is None else given.limit
    if limit < 1:
        raise Refused(422, f"Validation error in JSON body: [limit: value {limit} invalid]")
    with translating():
        return edge.QueryRequest(
            limit=limit,
            offset=given.offset or 0,
            query=None if vector is None else edge.Query.Nearest(vector),
            filter=filter_of(given.filter),
            score_threshold=given.score_threshold,
            params=_params(given.params),
            with_payload=payload_of(given.with_payload, default=False),
            with_vector=vector_of(given.with_vector),
        )


def _params(given: models.SearchParams | None) -> edge.SearchParams | None:
    if given is None:
        return None
    only(given, ("hnsw_ef", "exact", "quantization", "indexed_only"), "params.")
    return edge.SearchParams(
        hnsw_ef=given.hnsw_ef,
        exact=bool(given.exact),
        indexed_only=bool(given.indexed_only),
        quantization=_quantization(given.quantization),
    )


def _quantization(
    given: models.QuantizationSearchParams | None,
) -> edge.QuantizationSearchParams | None:
    if given is None:
        return None
    return edge.QuantizationSearchParams(bool(given.ignore), given.rescore, given.oversampling)


def payload_of(given: Any, *, default: bool) -> bool | list[str] | edge.PayloadSelector:
    """Translate which fields of the payload are wanted."""
    if isinstance(given, models.PayloadSelectorInclude):
        return given.include
    if isinstance(given, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(given.exclude)
    wanted: bool | list[str] = default if given is None else given
    return wanted


def vector_of(given: bool | list[str] | None) -> bool:
    """Translate whether vectors are wanted: there is one, without a name."""
    return given if isinstance(given, bool) else bool(given)


def hits(points: Sequence[edge.ScoredPoint]) -> list[dict[str, Any]]:
    """Tell what a search found."""
    return [
        {"id": ident(p.id), "version": p.version, "score": p.score}
        | {"payload": p.payload, "vector": p.vector}
        for p in points
    ]


def records(points: Sequence[edge.Record]) -> list[dict[str, Any]]:
    """Tell points that were read."""
    return [{"id": ident(p.id), "payload": p.payload, "vector": p.vector} for p in points]


def ident(given: Any) -> int | str | None:
    """Tell an id: a number, or the text of a UUID."""
    return given if given is None or isinstance(given, int) else str(given)
