"""`knnlm-store info`, `ls`, `rm` and `compact`: datastores themselves, without a model."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import options, output
from knnlm_store.errors import StoreCorrupt, StoreMismatch, StoreNotFound, UsageError

if TYPE_CHECKING:
    from knnlm_store.values import Location

StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="The datastore, as BACKEND:PATH/NAME, such as faiss:stores/law."
    ),
]


def info(store: StoreArgument, json: options.Json = False) -> None:
    """Tell what a datastore is and holds."""
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        facts = opened.info()
    if json:
        output.print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name + ':':<16}{_readable(name, value)}")


def _readable(name: str, value: Any) -> Any:
    if name == "bytes":
        return output.size(value)
    return output.count(value) if isinstance(value, int) else value


def ls(
    place: Annotated[
        str | None,
        typer.Argument(
            help="Where to look, as BACKEND:PATH or BACKEND://HOST:PORT.",
            show_default="faiss:stores, or the folder KNNLM_STORE_URL",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the datastores at a place."""
    from knnlm_store import registry

    location = registry.parse_root(
        place or f"faiss:{os.environ.get('KNNLM_STORE_URL') or 'stores'}"
    )
    names = registry.load(location.scheme).names(location)
    shown = _place(location)
    if json:
        output.print_json({"place": shown, "names": names})
        return
    for name in names:
        typer.echo(f"{shown.rstrip('/')}/{name}")
    if not names:
        output.say(f"There are no datastores at {shown}.")


def _place(location: Location) -> str:
    return str(location).removesuffix("/" + location.name)


def rm(
    store: StoreArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a datastore with everything in it."""
    from knnlm_store import registry

    location = registry.parse(store)
    backend = registry.connect(location)
    try:
        with suppress(StoreCorrupt, StoreMismatch):  # what cannot be opened can still go
            backend.spec()
        if not yes and not typer.confirm(f"Remove {location} and all its entries?", err=True):
            raise typer.Exit(1)
        backend.drop()
    except StoreNotFound as error:
        error.hint = f"See what there is: knnlm-store ls {_place(location)}"
        raise
    finally:
        backend.close()
    typer.echo(f"removed {location}")


def compact(store: StoreArgument) -> None:
    """Drop deleted entries from disk and rebuild the index."""
    from knnlm_store.backend import Compactable, Indexed
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        backend = opened.backend
        if not isinstance(backend, Compactable):
            raise UsageError(
                f"The backend {opened.location.scheme} needs no compaction.",
                hint="There is nothing to do.",
            )
        before = backend.size()
        with output.status("compacting"):
            backend.compact()
            index = backend.build_index() if isinstance(backend, Indexed) else None
        typer.echo(f"{output.size(before)} before, {output.size(backend.size())} after")
        if index:
            typer.echo(f"index: {index}")
