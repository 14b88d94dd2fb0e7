"""`knnlm-store copy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.cli.interrupt import stop_on_interrupt
from knnlm_store.errors import UsageError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.copying import CopyReport
    from knnlm_store.datastore import Datastore
    from knnlm_store.values import Location

EXAMPLES = options.examples(
    "knnlm-store copy faiss:stores/law qdrant://localhost:6333/law",
    "knnlm-store copy milvus://localhost:19530/law faiss:backup/law --storage float32",
)

_Place = Annotated[
    str, typer.Argument(help="As BACKEND:PATH/NAME, or a domain's name.", show_default=False)
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="How a new datastore keeps its keys: float16, float32 or int8.",
        show_default="as the source does, where the backend offers it",
    ),
]


def copy(
    source: _Place,
    target: _Place,
    storage: Storage = None,
    option: options.CreationOptions = None,
    json: options.Json = False,
) -> None:
    """Copy a datastore, from any backend to any other, with no model.

    What the target has already is skipped, what changed in the source is replaced, and what
    the target holds besides stays. Stop it at any time and run the same command again.
    """
    from knnlm_store.datastore import Datastore

    origin, where = (common.location(each, None, None, None) for each in (source, target))
    if origin == where:
        raise UsageError("A datastore cannot be copied onto itself.", hint="Name another target.")
    with Datastore.open(origin) as old, _target(old, where, storage, option) as new:
        copied(old, new, json=json)


def copied(
    source: Datastore, target: Datastore, called: str = "copy", *, json: bool = False
) -> None:
    """Copy between open datastores, and tell of it as the command `called` does."""
    from knnlm_store.copying import copy as run

    with output.progress(called, None) as bar, stop_on_interrupt() as stop:
        report = run(
            source,
            target,
            progress=lambda r: bar.show_entries(r.entries, r.total, r.seconds),
            stop=stop,
            called=called,
        )
    if json:
        places = {"source": str(source.location), "target": str(target.location)}
        output.print_json(report.json() | places)
    else:
        _summary(report, target.location, target.backend.spec().storage)
    changed = tell_left_out(report.unfinished, report.changed, "copied")
    if report.interrupted:
        output.say("Interrupted. Run the same command to go on.")
        raise typer.Exit(130)
    if changed:
        raise typer.Exit(1)


def tell_left_out(unfinished: int, changed: list[str], done: str) -> bool:
    """Say which documents of the source were not copied or exported, and whether any changed."""
    from knnlm_store.corpus.values import shown

    if unfinished:
        output.say(
            f"{counted(unfinished, 'unfinished document')} of the source left out; "
            "ingest there again."
        )
    for document in changed:
        output.say(f"changed meanwhile, not {done}: {shown(document)}")
    return bool(changed)


def _target(
    source: Datastore, where: Location, storage: str | None, settings: list[str] | None
) -> Datastore:
    """Open the target, or make it, with the source's storage if its backend has that."""
    from knnlm_store import registry
    from knnlm_store.datastore import Datastore

    backend = registry.connect(where)
    kept = source.backend.spec().storage
    if storage is None and kept in backend.storages and not backend.exists():
        storage = kept
    backend.close()
    chosen = common.creation_options(settings)
    return Datastore.open_or_create(where, source.manifest, storage, chosen)


def _summary(report: CopyReport, where: Location, storage: str) -> None:
    typer.echo(f"documents: {report.copied} copied, {report.skipped} there already")
    speed = report.entries / max(report.seconds, 1e-9)
    typer.echo(
        f"entries: {output.count(report.entries)} in {report.seconds:,.1f} s "
        f"({output.count(speed)}/s)"
    )
    if report.index:
        typer.echo(f"index: {report.index}")
    if report.verified:
        typer.echo(
            f"verified: {counted(report.verified['entries'], 'entry')} counted, "
            f"{report.verified['sample']} compared in full"
        )
    typer.echo(f"datastore: {where}, keys as {storage}")
