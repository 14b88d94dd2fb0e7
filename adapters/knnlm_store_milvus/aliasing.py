"""Aliases, Milvus' own: a second name for a main collection."""

from __future__ import annotations

from knnlm_store.errors import StoreExists, StoreNotFound
from knnlm_store.values import Location
from knnlm_store_milvus import naming
from knnlm_store_milvus.connection import Connection, visiting


def set_alias(connection: Connection, alias: str, collection: str) -> None:
    """Have `alias` stand for a main collection, in one step. Raises StoreExists."""
    coded = naming.encode(alias)
    found = connection.describe(coded)
    if found is not None and found.name == coded:
        raise StoreExists(
            f"{alias} is a datastore or a collection, and cannot be an alias.",
            hint="Take another name.",
        )
    connection.set_alias(coded, collection, new=found is None)


def remove_alias(location: Location) -> None:
    """Remove the alias at `location`, and nothing else. Raises StoreNotFound."""
    coded = naming.encode(location.name)
    with visiting(location) as connection:
        found = connection.describe(coded) if connection else None
        if connection is None or found is None or found.name == coded:
            raise StoreNotFound(f"There is no alias {location}.", hint="Run: knnlm-store ls")
        connection.drop_alias(coded)


def aliases(location: Location) -> dict[str, str]:
    """Aliases at `location.root` of what can be datastores, each with the datastore's name."""
    with visiting(location) as connection:
        pairs = connection.aliases() if connection else {}
    named = {naming.decode(alias): naming.decode(name) for alias, name in pairs.items()}
    return {alias: name for alias, name in named.items() if alias and name}
