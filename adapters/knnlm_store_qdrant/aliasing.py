"""Second names of datastores: an alias of each of the two collections, moved together."""

from __future__ import annotations

from qdrant_client import models

from knnlm_store.errors import StoreExists, StoreNotFound
from knnlm_store_qdrant.naming import RECORDS, collection_of, name_of, records_of
from knnlm_store_qdrant.server import Server


def targets(server: Server) -> dict[str, str]:
    """Ask for the aliases of a server: alias to collection."""
    with server.calling() as client:
        listed = client.get_aliases().aliases
    return {each.alias_name: each.collection_name for each in listed}


def listed(server: Server) -> dict[str, str]:
    """Find the aliases of datastores among all of a server: alias to datastore's name."""
    known = targets(server)
    found: dict[str, str] = {}
    for alias, collection in known.items():
        name, meant = name_of(alias), name_of(collection)
        beside = known.get(alias + RECORDS) == records_of(collection)
        if name is not None and meant is not None and beside:
            found[name] = meant
    return found


def point(server: Server, alias: str, collection: str) -> None:
    """Have the alias stand for the datastore in `collection`, in one request.

    Raises StoreExists if a collection has that name.
    """
    second = collection_of(alias)
    with server.calling() as client:
        taken = {each.name for each in client.get_collections().collections}
    if taken & {second, records_of(second)}:
        raise _taken(alias)
    known = targets(server)
    changes: list[models.AliasOperations] = []
    for each, target in ((second, collection), (records_of(second), records_of(collection))):
        if each in known:
            changes.append(_delete(each))
        made = models.CreateAlias(collection_name=target, alias_name=each)
        changes.append(models.CreateAliasOperation(create_alias=made))
    try:
        with server.calling() as client:
            client.update_collection_aliases(changes)
    except StoreExists as error:
        raise _taken(alias) from error


def remove(server: Server, alias: str) -> None:
    """Remove an alias of a datastore. Raises StoreNotFound."""
    if alias not in listed(server):
        raise StoreNotFound(
            f"Qdrant at {server.place} has no alias {alias}.",
            hint="An alias is removed by its own name, a datastore by: knnlm-store rm",
        )
    first = collection_of(alias)
    with server.calling() as client:
        client.update_collection_aliases([_delete(first), _delete(records_of(first))])


def _delete(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _taken(alias: str) -> StoreExists:
    return StoreExists(
        f"{alias} is the name of a collection, which an alias would hide.",
        hint="Take another name for the alias.",
    )
