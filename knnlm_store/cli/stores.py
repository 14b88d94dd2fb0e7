"""`knnlm-store info`, `ls`, `rm` and `compact`: datastores themselves, without a model."""

from __future__ import annotations

from typing import Annotated

import typer

from knnlm_store import registry
from knnlm_store.backend import Compactable, Indexed
from knnlm_store.cli import common
from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="The datastore, as BACKEND:PATH/NAME.")
]


def info(store: StoreArgument, json: common.Json = False) -> None:
    """Tell what a datastore is and holds."""
    with Datastore.open(store) as opened:
        facts = opened.info()
    if json:
        common.print_json(facts)
        return
    for name, value in facts.items():
        shown = common.size(value) if name == "bytes" else value
        typer.echo(f"{name + ':':<16}{common.count(shown) if isinstance(shown, int) else shown}")


def ls(
    place: Annotated[
        str, typer.Argument(help="Where to look, as BACKEND:PATH or BACKEND://HOST:PORT.")
    ] = "faiss:stores",
    json: common.Json = False,
) -> None:
    """List the datastores at a place."""
    location = registry.parse_root(place)
    names = registry.load(location.scheme).names(location)
    if json:
        common.print_json({"place": place, "names": names})
        return
    for name in names:
        typer.echo(f"{place.rstrip('/')}/{name}")
    if not names:
        common.err.print(f"No datastores at {place}.")


def rm(
    store: StoreArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a datastore with everything in it."""
    backend = registry.connect(store)
    backend.spec()
    if not yes and not typer.confirm(f"Remove {store} and all its entries?", err=True):
        raise typer.Exit(1)
    backend.drop()
    typer.echo(f"removed {store}")


def compact(store: StoreArgument) -> None:
    """Drop deleted entries from disk and rebuild the index."""
    with Datastore.open(store) as opened:
        backend = opened.backend
        if not isinstance(backend, Compactable):
            raise UsageError(f"The backend {opened.location.scheme} needs no compaction.")
        before = backend.size()
        with common.err.status("compacting"):
            backend.compact()
            index = backend.build_index() if isinstance(backend, Indexed) else None
        typer.echo(f"{common.size(before)} before, {common.size(backend.size())} after")
        if index:
            typer.echo(f"index: {index}")
