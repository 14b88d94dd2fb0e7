"""`knnlm-store ingest`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common
from knnlm_store.cli.common import err
from knnlm_store.corpus import Corpus
from knnlm_store.errors import UsageError
from knnlm_store.values import Location

if TYPE_CHECKING:
    from knnlm_store.ingest import IngestReport
    from knnlm_store.models import LanguageModel


def ingest(
    inputs: common.Inputs,
    model: common.Model,
    store: common.Store = None,
    backend: common.Backend = None,
    name: common.Name = None,
    url: common.Url = None,
    revision: common.Revision = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    batch_size: common.BatchSize = None,
    key_module: Annotated[
        str, typer.Option(help="last_ffn_input, lm_head_input, PATH:input or PATH:output.")
    ] = "last_ffn_input",
    window: Annotated[
        int | None,
        typer.Option(help="Inputs of a forward pass.", min=2, show_default="1024 or the limit"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="float16, float32 or int8.", show_default="the backend's choice"),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Name of the source.", show_default="the folder's name")
    ] = None,
    text_column: common.TextColumn_ = "text",
    id_column: common.IdColumn = "id",
    metadata_column: Annotated[
        list[str] | None,
        typer.Option(help="Column kept with each document; repeat.", show_default=False),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE kept with every document; repeat.", show_default=False),
    ] = None,
    include: common.Include = None,
    exclude: common.Exclude = None,
    encoding: common.Encoding = "utf-8",
    stdin_format: common.StdinFormat = "text",
    limit: common.Limit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count tokens, and estimate bytes and time.")
    ] = False,
    json: common.Json = False,
) -> None:
    """Read a corpus into a datastore: every token becomes an entry.

    Documents that did not change are skipped and changed ones replaced. Stop it at any time
    and run the same command again: it goes on.
    """
    options = common.read_options(
        stdin_format,
        source=source,
        text_column=text_column,
        id_column=id_column,
        metadata_columns=metadata_column,
        metadata=_pairs(metadata or []),
        include=include,
        exclude=exclude,
        encoding=encoding,
        limit=limit,
    )
    corpus = Corpus(inputs, options)
    where = common.location(store, backend, name, url, corpus)
    language_model = common.load_model(
        model, revision=revision, device=device, dtype=dtype, key=key_module, window=window
    )
    if dry_run:
        _dry_run(corpus, language_model, where, storage, batch_size, json)
    else:
        _ingest(corpus, language_model, where, storage, batch_size, json)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--metadata takes KEY=VALUE, not {text!r}.")
        pairs[key] = value
    return pairs


def _ingest(
    corpus: Corpus,
    model: LanguageModel,
    where: Location,
    storage: str | None,
    batch_size: int | None,
    json: bool,
) -> None:
    from knnlm_store.datastore import Datastore
    from knnlm_store.ingest import ingest as run

    with Datastore.open_or_create(where, model.manifest(), storage) as store:
        with _stop_on_interrupt() as stop, common.progress_bar() as bar:
            task = bar.add_task("ingest", total=corpus.total_bytes, told="")

            def show(report: IngestReport) -> None:
                speed = report.tokens / max(report.seconds, 1e-9)
                told = f"{common.count(report.tokens)} tokens, {common.count(speed)}/s"
                bar.update(task, completed=report.bytes_read, told=told)

            report = run(
                corpus,
                model,
                store,
                batch_tokens=common.batch_tokens(model, batch_size),
                progress=show,
                stop=stop,
            )
        entries = store.backend.count()
    if json:
        common.print_json(report.json() | {"store": {"uri": str(where), "entries": entries}})
    else:
        _summary(report, where, entries)
    common.tell_problems(report.problems)
    if report.interrupted:
        raise typer.Exit(130)
    if report.failed and not (report.added or report.replaced or report.skipped):
        raise typer.Exit(1)


def _summary(report: IngestReport, where: Location, entries: int) -> None:
    counts = ", ".join(
        f"{getattr(report, what)} {what}" for what in ("added", "replaced", "skipped", "failed")
    )
    typer.echo(f"documents: {counts}")
    speed = report.tokens / max(report.seconds, 1e-9)
    typer.echo(
        f"tokens: {common.count(report.tokens)} in {report.seconds:,.1f} s "
        f"({common.count(speed)}/s)"
    )
    if report.mended:
        typer.echo(f"mended: {report.mended} documents that an earlier run had left unfinished")
    if report.index:
        typer.echo(f"index: {report.index}")
    typer.echo(f"datastore: {where}, {common.count(entries)} entries")
    if report.interrupted:
        err.print("Interrupted. Run the same command to go on.")


def _dry_run(
    corpus: Corpus,
    model: LanguageModel,
    where: Location,
    storage: str | None,
    batch_size: int | None,
    json: bool,
) -> None:
    from knnlm_store.estimate import estimate

    with err.status("counting tokens"):
        result = estimate(
            corpus, model, where, storage, batch_tokens=common.batch_tokens(model, batch_size)
        )
    if json:
        common.print_json(result.json())
    else:
        typer.echo(f"documents: {result.documents} to write, {result.unchanged} unchanged")
        typer.echo(f"tokens: {common.count(result.tokens)}, one entry each")
        typer.echo(f"size: about {common.size(result.bytes)} ({result.storage} keys)")
        typer.echo(f"time: about {result.seconds:,.0f} s on this machine")
        typer.echo(f"Nothing was written to {where}.")
    common.tell_problems(result.problems)


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop cleanly; the second one ends at once."""
    asked = False

    def handle(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        err.print("Stopping after the documents in hand; Ctrl-C again to stop at once.")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
