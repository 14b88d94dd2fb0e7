"""What each path of Qdrant's REST API does here: a request in, the `result` of the reply out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

import qdrant_edge as edge
from qdrant_client.http import models

from knnlm_store_qdrant.engine import points
from knnlm_store_qdrant.engine.filters import filter_of
from knnlm_store_qdrant.engine.node import Node
from knnlm_store_qdrant.engine.refusal import Refused, engine, only, translating, wrong
from knnlm_store_qdrant.engine.settings import changed, checked, dimension

VERSION = {
    "title": f"Qdrant's engine, embedded (qdrant-edge-py {version('qdrant-edge-py')})",
    # of the REST API, which clients compare with their own
    "version": version("qdrant-client"),
}
_UNKNOWN = re.compile(r"/(collections|cluster|snapshots|telemetry|metrics|locks|issues)(/.*)?")


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `name` of a collection, `field` of a payload, the query string, the body."""

    body: bytes
    query: Mapping[str, str]
    name: str = ""
    field: str = ""

    def read(self, kind: Any) -> Any:
        """Parse the body as a model of qdrant-client."""
        return points.valid(kind, points.parsed(self.body))

    def check(self) -> None:
        """Raise Refused for a consistency or an order of writes that Qdrant does not know.

        Of those it knows, one node honours all.
        """
        consistency, ordering = self.query.get("consistency"), self.query.get("ordering")
        if consistency is not None:
            number = int(consistency) if consistency.isdecimal() else consistency
            points.valid(models.ReadConsistency, number)
        if ordering is not None:
            points.valid(models.WriteOrdering, ordering)

    def updated(self) -> dict[str, Any]:
        """Tell a write that is done; every one is, however long the client cares to wait."""
        waited = self.query.get("wait", "false") == "true"
        return {"operation_id": None, "status": "completed" if waited else "acknowledged"}


Route = Callable[[Node, Request], Any]


def _list(node: Node, request: Request) -> Any:
    return {"collections": [{"name": name} for name in node.names()]}


def _create(node: Node, request: Request) -> Any:
    node.create(request.name, checked(request.read(models.CreateCollection)))
    return True


def _info(node: Node, request: Request) -> Any:
    return node.get(request.name).info()


def _update(node: Node, request: Request) -> Any:
    update, collection = request.read(models.UpdateCollection), node.get(request.name)
    rebuild = any((update.vectors, update.hnsw_config, update.quantization_config))
    collection.change(changed(collection.settings, update), rebuild=rebuild)
    return True


def _drop(node: Node, request: Request) -> Any:
    return node.drop(request.name)


def _exists(node: Node, request: Request) -> Any:
    return {"exists": node.exists(request.name)}


def _aliases(node: Node, request: Request) -> Any:
    return {"aliases": node.aliases(request.name)}


def _change_aliases(node: Node, request: Request) -> Any:
    node.change_aliases(request.read(models.ChangeAliasesOperation).actions)
    return True


def _upsert(node: Node, request: Request) -> Any:
    collection = node.get(request.name, write=True)
    given = points.insertion(request.body, dimension(collection.settings))
    collection.write(given.operation, given.count)
    return request.updated()


def _delete(node: Node, request: Request) -> Any:
    given = request.read(models.PointsSelector)
    collection = node.get(request.name, write=True)
    only(given, ("points", "filter"))
    with translating():
        if isinstance(given, models.PointIdsList):
            operation = edge.UpdateOperation.delete_points(given.points)
        else:
            chosen = filter_of(given.filter) or edge.Filter()
            operation = edge.UpdateOperation.delete_points_by_filter(chosen)
    collection.write(operation)
    return request.updated()


def _retrieve(node: Node, request: Request) -> Any:
    shard, given = node.get(request.name).shard, request.read(models.PointRequest)
    only(given, ("ids", "with_payload", "with_vector"))
    payload = points.payload_of(given.with_payload, default=True)
    with engine(), translating():
        found = shard.retrieve(given.ids, payload, points.vector_of(given.with_vector))
    return points.records(found)


def _query(node: Node, request: Request) -> Any:
    collection = node.get(request.name)
    (search,) = points.searches(request.body, False, dimension(collection.settings))
    with engine():
        found = collection.shard.query(search)
    return {"points": points.hits(found)}


def _query_batch(node: Node, request: Request) -> Any:
    collection = node.get(request.name)
    searches = points.searches(request.body, True, dimension(collection.settings))
    with engine():
        found = collection.shard.query_batch(edge.QueryBatchRequest(searches))
    return [{"points": points.hits(each)} for each in found]


def _count(node: Node, request: Request) -> Any:
    shard, given = node.get(request.name).shard, request.read(models.CountRequest)
    only(given, ("filter", "exact"))
    exact = True if given.exact is None else given.exact
    chosen = filter_of(given.filter)
    with engine():
        return {"count": shard.count(edge.CountRequest(filter=chosen, exact=exact))}


def _scroll(node: Node, request: Request) -> Any:
    shard, given = node.get(request.name).shard, request.read(models.ScrollRequest)
    only(given, ("offset", "limit", "filter", "with_payload", "with_vector"))
    limit = 10 if given.limit is None else given.limit
    if limit < 1:
        raise Refused(422, f"Validation error in JSON body: [limit: value {limit} invalid]")
    with translating():
        scroll = edge.ScrollRequest(
            offset=given.offset,
            limit=limit,
            filter=filter_of(given.filter),
            with_payload=points.payload_of(given.with_payload, default=True),
            with_vector=points.vector_of(given.with_vector),
        )
    with engine():
        found, following = shard.scroll(scroll)
    return {"points": points.records(found), "next_page_offset": points.ident(following)}


def _index(node: Node, request: Request) -> Any:
    collection, given = node.get(request.name), request.read(models.CreateFieldIndex)
    schema = given.field_schema
    if schema is None:
        raise wrong("the embedded engine does not guess the type of an index")
    if not isinstance(schema, models.PayloadSchemaType):
        only(schema, ("type",), "field_schema.")
        schema = schema.type
    kind = getattr(edge.PayloadSchemaType, schema.value.capitalize())
    collection.write(edge.UpdateOperation.create_field_index(given.field_name, kind))
    return request.updated()


def _compact(node: Node, request: Request) -> Any:
    """Ours, not Qdrant's: repeated with the same wish until it is completed."""
    granted = node.get(request.name, write=True).wishes.granted(request.query.get("wish", ""))
    return {"operation_id": None, "status": "completed" if granted else "acknowledged"}


def _drop_index(node: Node, request: Request) -> Any:
    collection = node.get(request.name)
    collection.write(edge.UpdateOperation.delete_field_index(request.field))
    return request.updated()


_PATHS: list[tuple[str, dict[str, Route]]] = [
    ("/collections", {"GET": _list}),
    ("/aliases", {"GET": _aliases}),
    ("/collections/aliases", {"POST": _change_aliases}),
    ("/collections/NAME", {"GET": _info, "PUT": _create, "PATCH": _update, "DELETE": _drop}),
    ("/collections/NAME/exists", {"GET": _exists}),
    ("/collections/NAME/aliases", {"GET": _aliases}),
    ("/collections/NAME/points", {"PUT": _upsert, "POST": _retrieve}),
    ("/collections/NAME/points/delete", {"POST": _delete}),
    ("/collections/NAME/points/query", {"POST": _query}),
    ("/collections/NAME/points/query/batch", {"POST": _query_batch}),
    ("/collections/NAME/points/count", {"POST": _count}),
    ("/collections/NAME/points/scroll", {"POST": _scroll}),
    ("/collections/NAME/compact", {"POST": _compact}),
    ("/collections/NAME/index", {"PUT": _index}),
    ("/collections/NAME/index/FIELD", {"DELETE": _drop_index}),
]


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(path.replace("NAME", "(?P<name>[^/]+)").replace("FIELD", "(?P<field>[^/]+)"))


_ROUTES = [(_pattern(path), methods) for path, methods in _PATHS]


def answer(node: Node, method: str, path: str, query: Mapping[str, str], body: bytes) -> Any:
    """Serve a request and give its result; raises Refused."""
    for pattern, methods in _ROUTES:
        found = pattern.fullmatch(path)
        if found and method in methods:
            parts = {part: unquote(text) for part, text in found.groupdict().items()}
            request = Request(body, query, **parts)
            request.check()
            return methods[method](node, request)
    if _UNKNOWN.fullmatch(path):
        raise Refused(501, f"The embedded engine does not serve {method} {path}.")
    raise Refused(404, f"Not found: {path}")
