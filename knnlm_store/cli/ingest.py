"""`knnlm-store ingest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, options, output, slips
from knnlm_store.cli.creating import Wanted, key_space
from knnlm_store.cli.interrupt import stop_on_interrupt
from knnlm_store.cli.prune import Prune
from knnlm_store.errors import UsageError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.backend import VectorBackend
    from knnlm_store.corpus import Corpus
    from knnlm_store.ingest import IngestReport
    from knnlm_store.models import LanguageModel
    from knnlm_store.values import Location

EXAMPLES = options.examples(
    "knnlm-store ingest --backend faiss --model MODEL corpus/",
    "knnlm-store ingest --store faiss:stores/law --model MODEL laws.jsonl.gz --id-column number",
    "knnlm-store ingest --store faiss:stores/law --model MODEL corpus/ --dry-run",
)


def ingest(
    inputs: options.Inputs,
    model: options.Model,
    store: options.Store = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.SourceName = None,
    url: options.Url = None,
    storage: Annotated[
        str | None,
        options.option(
            options.STORE,
            "How a new datastore keeps its keys: float16, float32 or int8.",
            show_default="the backend's choice",
        ),
    ] = None,
    option: options.CreationOptions = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = None,
    key_module: Annotated[
        str | None,
        options.option(
            options.MODEL,
            "Where a new datastore's keys are read in the model: last_ffn_input (input of the "
            "last feed-forward layer), lm_head_input (of the output layer), or MODULE:input or "
            "MODULE:output.",
            show_default="last_ffn_input",
        ),
    ] = None,
    window: Annotated[
        int | None,
        options.option(
            options.MODEL,
            "Tokens that a new datastore's model reads at once.",
            min=2,
            show_default="1024, or the model's limit if lower",
        ),
    ] = None,
    transform: Annotated[
        str | None,
        options.option(
            options.STORE,
            "How a new datastore maps hidden states to keys: model, the same for all datastores "
            "of the model, to 256 dimensions at most, or none.",
            show_default="model",
        ),
    ] = None,
    transform_from: Annotated[
        str | None,
        options.option(
            options.STORE,
            "Datastore of the same model whose map a new one takes, where that was made on "
            "another machine and both are to be searched together.",
            callback=common.store_argument,
        ),
    ] = None,
    source: options.Source = None,
    text_column: options.TextColumn = "text",
    id_column: options.IdColumn = "id",
    metadata_column: options.MetadataColumns = None,
    metadata: options.Metadata = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    encoding: options.Encoding = "utf-8",
    stdin_format: options.StdinFormat = "text",
    limit: options.Limit = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; count tokens, estimate bytes and time."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Read a corpus into a datastore: every token becomes an entry.

    Documents that did not change are skipped and changed ones replaced. Stop it at any time
    and run the same command again: it goes on.
    """
    from knnlm_store.corpus import Corpus

    common.need_model_libraries()
    reading = common.read_options(
        stdin_format,
        source=source,
        text_column=text_column,
        id_column=id_column,
        metadata_columns=metadata_column,
        metadata=common.pairs("--metadata", metadata, "--metadata language=en"),
        include=include,
        exclude=exclude,
        encoding=encoding,
        limit=limit,
    )
    corpus = Corpus(inputs, reading)
    where = common.location(store, backend, name, url, corpus, domain=domain, config=config)
    _check_storage(where, storage)
    wanted = Wanted(
        key_module, window, storage, common.creation_options(option), transform, transform_from
    )
    slips.tell(corpus, where, source)
    language_model = load_model(where, wanted, model, revision=revision, device=device, dtype=dtype)
    run = _dry_run if dry_run else write
    run(corpus, language_model, where, wanted, batch_size, json)


def _check_storage(where: Location, storage: str | None) -> None:
    from knnlm_store import registry

    offered = registry.load(where.scheme).storages
    if storage is not None and storage not in offered:
        raise UsageError(
            f"{where.scheme} keeps keys as {', '.join(offered)}, not {storage}.",
            hint=f"Use --storage {offered[0]}, or leave it out.",
        )


def _check_settings(backend: VectorBackend, wanted: Wanted) -> None:
    """Have the backend refuse settings before a model is loaded; its dimension is not known yet."""
    from knnlm_store.values import Spec

    backend.check_spec(Spec(64, wanted.storage or backend.storages[0], wanted.settings))


def load_model(where: Location, wanted: Wanted, name: str, **loading: Any) -> LanguageModel:
    """Load the model as the datastore needs it, or as the user wants it for a new one."""
    from knnlm_store import registry
    from knnlm_store.datastore import Datastore

    loading |= wanted.loading()
    backend = registry.connect(where)
    try:
        if wanted.settings:
            _check_settings(backend, wanted)
        there = backend.exists()
    finally:
        backend.close()
    if not there:
        return common.load_model(name, **loading)
    with Datastore.open(where) as store:
        store.require_storage(wanted.storage)
        wanted.check_transform(store)
        kept = store.manifest.window
        if wanted.window not in (None, kept):
            raise UsageError(
                f"{where} was written with windows of {kept} tokens, not {wanted.window}.",
                hint="Leave --window out, or ingest under another --name.",
            )
        return common.load_model_for(store, name, **loading)


def write(
    corpus: Corpus,
    model: LanguageModel,
    where: Location,
    wanted: Wanted,
    batch_size: int | None,
    json: bool,
    prune: Prune | None = None,
) -> None:
    """Read a corpus into a datastore, then prune what left it, tell both, and end as it went."""
    from knnlm_store.datastore import Datastore
    from knnlm_store.ingest import IngestReport
    from knnlm_store.ingest import ingest as run
    from knnlm_store.retry import retrying

    report = IngestReport()
    manifest = key_space(model, where, wanted, batch_size)
    with Datastore.open_or_create(where, manifest, wanted.storage, wanted.settings) as store:
        with (
            output.progress("ingest", corpus.total_bytes) as bar,
            stop_on_interrupt(lambda: _in_hand(report)) as stop,
        ):
            run(
                prune.seen.through(corpus) if prune else corpus,
                model,
                store,
                batch_tokens=common.batch_tokens(model, batch_size),
                progress=lambda r: bar.show(r.bytes_read, r.tokens, r.seconds),
                stop=stop,
                report=report,
            )
        if not json:
            _summary(report)
        output.tell_problems(report.problems)
        pruned = prune.run(store, corpus, quiet=json) if prune and not report.interrupted else {}
        entries = retrying()(store.backend.count)
    if json:
        kept = {"uri": str(where), "name": where.name, "entries": entries}
        output.print_json(report.json() | pruned | {"store": kept})
    else:
        typer.echo(f"datastore: {where}, {counted(entries, 'entry')}")
    if report.interrupted:
        output.say("Interrupted. Run the same command to go on.")
        raise typer.Exit(130)
    if report.refused or (prune and prune.is_owed):  # so that a Job is run again
        raise typer.Exit(1)
    if report.failed and not (report.added or report.replaced or report.skipped):
        raise typer.Exit(1)


def _in_hand(report: IngestReport) -> str:
    if not report.in_hand:
        return "what is being written"
    return f"the {counted(report.in_hand, 'document')} in hand"


def _summary(report: IngestReport) -> None:
    counts = ", ".join(
        f"{getattr(report, what)} {what}" for what in ("added", "replaced", "skipped", "failed")
    )
    typer.echo(f"documents: {counts}")
    speed = report.tokens / max(report.seconds, 1e-9)
    typer.echo(
        f"tokens: {output.count(report.tokens)} in {report.seconds:,.1f} s "
        f"({output.count(speed)}/s)"
    )
    if report.mended:
        mended = counted(report.mended, "document")
        typer.echo(f"mended: {mended} that an earlier run had left unfinished")
    if report.index:
        typer.echo(f"index: {report.index}")


def _dry_run(
    corpus: Corpus,
    model: LanguageModel,
    where: Location,
    wanted: Wanted,
    batch_size: int | None,
    json: bool,
) -> None:
    from knnlm_store.estimate import estimate

    with output.status("counting tokens"):
        result = estimate(
            corpus,
            model,
            where,
            wanted.storage,
            transform=wanted.transform,
            transform_from=wanted.transform_from,
            batch_tokens=common.batch_tokens(model, batch_size),
        )
    if json:
        output.print_json({"dry_run": True} | result.json())
    else:
        typer.echo(f"documents: {result.documents} to write, {result.unchanged} unchanged")
        typer.echo(f"tokens: {output.count(result.tokens)}, one entry each")
        typer.echo(f"size: about {output.size(result.bytes)} ({result.storage} keys)")
        typer.echo(f"time: about {result.seconds:,.0f} s on this machine")
        typer.echo(f"Nothing was written to {where}.")
    output.tell_problems(result.problems)
