"""`knnlm-store export` and `import`: datastores as folders of files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, copy, options, output, stores
from knnlm_store.cli.interrupt import stop_on_interrupt

if TYPE_CHECKING:
    from knnlm_store.bundle import ExportReport
    from knnlm_store.datastore import Datastore

EXPORT_EXAMPLES = options.examples(
    "knnlm-store export qdrant://localhost:6333/law backup/law-2025-01",
)
IMPORT_EXAMPLES = options.examples(
    "knnlm-store import backup/law-2025-01 --store faiss:stores/law",
    "knnlm-store import backup/law-2025-01 --check",
)


def export(
    store: stores.StoreArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Write a datastore into a folder, as a bundle: to be kept, handed on, imported elsewhere.

    The folder is there once the bundle is whole. Needs no model.
    """
    from knnlm_store.bundle import export_bundle
    from knnlm_store.datastore import Datastore
    from knnlm_store.registry import require

    require("pyarrow", "data")
    with (
        Datastore.open(store) as opened,
        output.progress("export", None) as bar,
        stop_on_interrupt() as stop,
    ):
        report = export_bundle(
            opened,
            folder,
            progress=lambda r: bar.show_entries(r.entries, r.total, r.seconds),
            stop=stop,
        )
    if report.interrupted:
        output.say(f"Interrupted: nothing was left at {folder}.")
        raise typer.Exit(130)
    if json:
        output.print_json(report.json() | {"source": str(opened.location), "bundle": str(folder)})
    else:
        _exported(report, folder)
    if copy.tell_left_out(report.unfinished, report.changed, "exported"):
        raise typer.Exit(1)


def import_(
    folder: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    store: options.Store = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    storage: copy.Storage = None,
    option: options.CreationOptions = None,
    model: Annotated[
        str | None,
        options.option(
            options.MODEL, "Refuse a bundle that this model, by id or folder, did not write."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the bundle and end; nothing is written.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Copy a bundle into a datastore, which is made if need be.

    The bundle is checked in full first: one that is cut short, altered or of another model is
    refused, and nothing is written. Stop it at any time and run the same command again.
    """
    from knnlm_store import bundle as bundles
    from knnlm_store.datastore import Datastore
    from knnlm_store.registry import require

    require("pyarrow", "data")
    settings = common.creation_options(option)
    where = None
    if not check or store or domain or backend:
        where = common.location(store, backend, name, url, domain=domain, config=config)
    with bundles.open_bundle(folder) as bundle:
        kept = bundles.require_target(bundle, where, storage, settings) if where else None
        if model is not None:
            common.need_model_libraries()
            common.load_model_for(bundle, model)
        _check(bundle)
        if check or where is None:
            _checked(bundle, folder, json)
            return
        with Datastore.open_or_create(where, bundle.manifest, kept, settings) as target:
            copy.copied(bundle, target, "import", json=json)


def _check(bundle: Datastore) -> None:
    from knnlm_store.bundle import check

    started = time.monotonic()
    with output.progress("check", None) as bar:
        check(
            bundle,
            lambda done, total: bar.show_entries(done, total, time.monotonic() - started),
        )


def _exported(report: ExportReport, folder: Path) -> None:
    typer.echo(f"documents: {output.count(report.documents)}")
    speed = report.entries / max(report.seconds, 1e-9)
    typer.echo(
        f"entries: {output.count(report.entries)} in {report.seconds:,.1f} s "
        f"({output.count(speed)}/s)"
    )
    typer.echo(f"bundle: {folder}, {output.size(report.bytes)}")


def _checked(bundle: Datastore, folder: Path, json: bool) -> None:
    """Tell of a bundle in which all is well."""
    info = bundle.info()
    names = ("entries", "documents", "dimension", "storage", "bytes", "model", "key", "transform")
    facts = {name: info[name] for name in names}
    if json:
        output.print_json({"bundle": str(folder), **facts})
        return
    typer.echo(f"{folder} is whole: each file and entry is as it was exported")
    for each, value in facts.items():
        typer.echo(f"{each + ':':<16}{stores.readable(each, value)}")
