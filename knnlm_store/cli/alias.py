"""`knnlm-store alias`: second names for datastores, where the backend has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, options
from knnlm_store.cli.stores import not_there, place_of
from knnlm_store.errors import StoreNotFound, UsageError

if TYPE_CHECKING:
    from knnlm_store.backend import Aliased
    from knnlm_store.values import Location

EXAMPLES = options.examples(
    "knnlm-store alias qdrant://localhost:6333/law-2 law",
    "knnlm-store alias --remove qdrant://localhost:6333/law",
)


def alias(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="The datastore, as BACKEND://HOST:PORT/NAME, or a domain's name; with --remove, "
            "the alias.",
            callback=common.store_argument,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="ALIAS", help="The name that is to stand for it.", show_default=False
        ),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove an alias; the datastore stays.")
    ] = False,
) -> None:
    """Let a second name stand for a datastore, or move it there from another one in one step.

    Whoever opens the alias gets the datastore that it stands for then; who has it open already
    keeps that one.
    """
    from knnlm_store import registry

    location = registry.parse(store)
    if remove != (name is None):
        raise UsageError(
            "--remove takes the alias alone." if remove else "No alias is named.",
            hint="Write knnlm-store alias STORE ALIAS, or knnlm-store alias --remove STORE.",
        )
    if name is None:
        _remove(location)
    else:
        _set(location, name)


def _adapter(location: Location) -> type[Aliased]:
    from knnlm_store import registry
    from knnlm_store.backend import Aliased

    adapter = registry.load(location.scheme)
    if not issubclass(adapter, Aliased):
        raise UsageError(
            f"The backend {location.scheme} has no aliases.",
            hint="Give the datastore's own name wherever it is used.",
        )
    return adapter


def _set(location: Location, name: str) -> None:
    from knnlm_store import registry
    from knnlm_store.backend import Aliased

    _adapter(location)
    place = place_of(location)
    if registry.parse(f"{place}/{name}") != replace(location, name=name):
        raise UsageError(
            f"{name!r} cannot be an alias: it is a name alone, at the same place.",
            hint=f"For example: knnlm-store alias {location} {location.name}-current",
        )
    backend = registry.connect(location)
    try:
        backend.spec()  # a datastore that is not there is told before all else
        assert isinstance(backend, Aliased)
        backend.set_alias(name)
    except StoreNotFound as error:
        error.hint = not_there(location)
        raise
    finally:
        backend.close()
    typer.echo(f"{place}/{name} -> {location.name}")


def _remove(location: Location) -> None:
    adapter = _adapter(location)
    try:
        adapter.remove_alias(location)
    except StoreNotFound as error:
        error.hint = f"See what there is: knnlm-store ls {place_of(location)}"
        raise
    typer.echo(f"removed the alias {location}")
