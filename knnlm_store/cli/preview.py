"""What `sync --dry-run` shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import typer

from knnlm_store.cli import output
from knnlm_store.errors import StoreNotFound

if TYPE_CHECKING:
    from knnlm_store.cli.prune import Prune
    from knnlm_store.corpus import Corpus
    from knnlm_store.datastore import Datastore
    from knnlm_store.preview import Preview
    from knnlm_store.values import Location

_STEPS = ("add", "change", "change_metadata", "forget")


def show(corpus: Corpus, where: Location, prune: Prune | None, json: bool) -> None:
    """Tell what a sync would do; exit code 1 where it could not prune."""
    from knnlm_store.preview import preview

    with output.status("comparing"), _opened(where) as store:
        found = preview(prune.seen.through(corpus) if prune else corpus, store)
        if prune is not None:
            found.forget = prune.foreseen(store, corpus) if store else []
    if json:
        output.print_json({"dry_run": True, "store": str(where)} | found.json())
    else:
        _tell(found, where)
    output.tell_problems(found.problems)
    if prune is not None and prune.is_owed:
        raise typer.Exit(1)


def _opened(where: Location) -> AbstractContextManager[Datastore | None]:
    from knnlm_store.datastore import Datastore

    try:
        return Datastore.open(where)
    except StoreNotFound:
        return nullcontext()


def _tell(found: Preview, where: Location) -> None:
    from knnlm_store.corpus.values import shown

    counts = []
    for step in _STEPS:
        documents, words = getattr(found, step), step.replace("_", " ")
        if documents is not None:
            counts.append(f"{output.count(len(documents))} to {words}")
        for document in documents or ():
            typer.echo(f"to {words}: {shown(document)}")
    typer.echo(f"documents: {', '.join(counts)}, {output.count(found.unchanged)} unchanged")
    typer.echo(f"Nothing was written to {where}.")
