"""`knnlm-store info`, `ls`, `rm` and `compact`: datastores themselves, without a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.errors import (
    StoreCorrupt,
    StoreError,
    StoreMismatch,
    StoreNotFound,
    UsageError,
)

if TYPE_CHECKING:
    from knnlm_store.backend import VectorBackend
    from knnlm_store.values import Location

StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The datastore, as BACKEND:PATH/NAME, such as faiss:stores/law, or a domain's name.",
        callback=common.store_argument,
    ),
]


def info(store: StoreArgument, json: options.Json = False) -> None:
    """Tell what a datastore is and holds."""
    from knnlm_store.calibrated import Calibration
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        facts = opened.info()
        try:
            calibration = Calibration.read(opened)
            facts["calibration"] = calibration.describe() if calibration else "none"
        except StoreError as error:
            facts["calibration"] = str(error)
    if json:
        output.print_json(facts)
        return
    for name, value in facts.items():
        if name != "alias_of" or value is not None:
            typer.echo(f"{name + ':':<16}{readable(name, value)}")


def readable(name: str, value: Any) -> str:
    """Write a fact about a datastore for people, on one line."""
    from knnlm_store.corpus.values import shown

    if name == "bytes":
        return output.size(value)
    return output.count(value) if isinstance(value, int) else shown(str(value))


def ls(
    place: Annotated[
        str | None,
        typer.Argument(
            help="Where to look, as BACKEND:PATH or BACKEND://HOST:PORT; BACKEND alone for the "
            "place KNNLM_STORE_URL, or the backend's own.",
            show_default="faiss",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the datastores at a place, and the aliases that stand for them."""
    from knnlm_store import registry
    from knnlm_store.backend import Aliased

    location = _root(place)
    adapter = registry.load(location.scheme)
    names = adapter.names(location)
    aliases = adapter.aliases(location) if issubclass(adapter, Aliased) else None
    shown = place_of(location)
    if json:
        known = {} if aliases is None else {"aliases": aliases}
        output.print_json({"place": shown, "names": names} | known)
        return
    for name in names:
        typer.echo(f"{shown}/{name}")
    for alias, name in sorted((aliases or {}).items()):
        typer.echo(f"{shown}/{alias} -> {name}")
    if not (names or aliases):
        output.say(f"There are no datastores at {shown}.")


def _root(place: str | None) -> Location:
    """Read a place, or a backend's name for the place that the environment or it says."""
    from knnlm_store import registry

    url = os.environ.get("KNNLM_STORE_URL") or None
    if place is None and url and url.startswith(("//", "http://", "https://")):
        raise UsageError(
            "KNNLM_STORE_URL is a server, and no backend is named.",
            hint="Name it, for example: knnlm-store ls qdrant",
        )
    place = place or "faiss"
    if ":" in place or place not in registry.providers():
        return registry.parse_root(place)
    return registry.short_form(place, "*", url)


def place_of(location: Location) -> str:
    """URI of the place where a datastore lies; a `/` and a name behind it give a datastore's."""
    return str(location).removesuffix("/" + location.name)


def not_there(location: Location) -> str:
    """Give the next step for whoever named a datastore that is not there."""
    from knnlm_store import registry

    there = f"See what there is: knnlm-store ls {place_of(location)}"
    return registry.did_you_mean(location) + there


def rm(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="The datastore, as BACKEND:PATH/NAME.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a datastore with everything in it."""
    from knnlm_store import registry

    _require_own_name(store)
    location = registry.parse(store)
    backend = registry.connect(location)
    try:
        if not yes and _may_hold_entries(backend):
            output.confirm(f"Remove {location} and all its entries?")
        backend.drop()
    except StoreNotFound as error:
        error.hint = not_there(location)
        raise
    finally:
        backend.close()
    typer.echo(f"removed {location}")


def _require_own_name(store: str) -> None:
    """Raise UsageError for a domain: it may have been set to another datastore meanwhile."""
    from knnlm_store.domains import Domains, is_name

    if is_name(store):
        uris = list(map(str, Domains.read().named(store).stores))
        raise UsageError(
            f"{store} is a domain, which stands for {', '.join(uris)}.",
            hint=f"Remove a datastore by its own name: knnlm-store rm {uris[0]}",
        )


def _may_hold_entries(backend: VectorBackend) -> bool:
    """Whether there is something to lose; what cannot be opened can still go."""
    try:
        return backend.exists()  # one that was never finished does not exist, but can go as well
    except (StoreCorrupt, StoreMismatch):
        return True


def compact(store: StoreArgument) -> None:
    """Drop deleted entries from disk and build the index, where the backend leaves that to us."""
    from knnlm_store.backend import Compactable, Indexed
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        backend = opened.backend
        if not isinstance(backend, Compactable | Indexed):
            raise UsageError(
                f"The backend {opened.location.scheme} needs no compaction.",
                hint="There is nothing to do.",
            )
        before = backend.size()
        with output.status("compacting"):
            if isinstance(backend, Compactable):
                backend.compact()
            index = backend.build_index() if isinstance(backend, Indexed) else None
        if isinstance(backend, Compactable):
            typer.echo(f"{output.size(before)} before, {output.size(backend.size())} after")
        elif backend.remote:
            typer.echo(
                "deleted entries: the server takes them off its disks by itself, in its time"
            )
        if index or isinstance(backend, Indexed):
            typer.echo(f"index: {index or 'nothing to build'}")
