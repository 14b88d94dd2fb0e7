"""`knnlm-store sync` and `add`: a source and a datastore, kept together."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from knnlm_store.cli import common, ingest, options, preview, slips
from knnlm_store.cli.creating import Wanted
from knnlm_store.cli.prune import Prune
from knnlm_store.errors import UsageError

EXAMPLES = options.examples(
    "knnlm-store sync corpus/ --store faiss:stores/law --model MODEL",
    "knnlm-store sync corpus/ --store faiss:stores/law --model MODEL --source law --prune",
    "knnlm-store sync corpus/ --store faiss:stores/law --model MODEL --prune --dry-run",
)
ADD_EXAMPLES = options.examples(
    "knnlm-store add new.txt --store faiss:stores/law --model MODEL --source law",
)


def sync(
    inputs: options.Inputs,
    model: options.Model,
    store: options.Store = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.SourceName = None,
    url: options.Url = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = None,
    source: options.Source = None,
    text_column: options.TextColumn = "text",
    id_column: options.IdColumn = "id",
    metadata_column: options.MetadataColumns = None,
    metadata: options.Metadata = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    encoding: options.Encoding = "utf-8",
    stdin_format: options.StdinFormat = "text",
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Forget documents that left the source; no other source's."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask, even where a source has become empty.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; tell what would be done, by document."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Bring a datastore up to date: add what is new, replace what changed, skip the rest.

    With --prune, documents that left the source are forgotten, but never after a reading that
    failed in part. A datastore that is not there yet is made as `ingest` makes it.
    """
    if prune:
        _check_whole(inputs, source)
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
        may_be_empty=prune,
    )
    place: dict[str, Any] = {"store": store, "backend": backend, "name": name, "url": url}
    place |= {"domain": domain, "config": config}
    loading = {"revision": revision, "device": device, "dtype": dtype}
    pruning = Prune(yes) if prune else None
    _read_in(inputs, reading, place, model, loading, batch_size, json, pruning, dry_run=dry_run)


def add(
    inputs: options.Inputs,
    model: options.Model,
    store: options.Store = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = None,
    source: options.Source = None,
    text_column: options.TextColumn = "text",
    id_column: options.IdColumn = "id",
    metadata_column: options.MetadataColumns = None,
    metadata: options.Metadata = None,
    encoding: options.Encoding = "utf-8",
    stdin_format: options.StdinFormat = "text",
    json: options.Json = False,
) -> None:
    """Add documents to a datastore that is there; those that it has already are replaced."""
    reading = common.read_options(
        stdin_format,
        source=source,
        text_column=text_column,
        id_column=id_column,
        metadata_columns=metadata_column,
        metadata=common.pairs("--metadata", metadata, "--metadata language=en"),
        encoding=encoding,
    )
    place: dict[str, Any] = {"store": store, "backend": backend, "name": name, "url": url}
    place |= {"domain": domain, "config": config}
    loading = {"revision": revision, "device": device, "dtype": dtype}
    _read_in(inputs, reading, place, model, loading, batch_size, json, must_exist=True)


def _read_in(
    inputs: list[str],
    reading: Any,
    place: dict[str, Any],
    model: str,
    loading: dict[str, Any],
    batch_size: int | None,
    json: bool,
    prune: Prune | None = None,
    *,
    must_exist: bool = False,
    dry_run: bool = False,
) -> None:
    """Do as `ingest` does, with nothing said of a new datastore."""
    from knnlm_store.corpus import Corpus
    from knnlm_store.datastore import Datastore

    common.need_model_libraries()
    corpus = Corpus(inputs, reading)
    where = common.location(**place, corpus=corpus)
    if prune is not None:
        prune.look(where)
        corpus = Corpus(inputs, reading)  # listed after that look
    if must_exist:
        Datastore.open(where).close()
    slips.tell(corpus, where, reading.source)
    if dry_run:
        preview.show(corpus, where, prune, json)
        return
    wanted = Wanted(None, None, None, {})
    language_model = ingest.load_model(where, wanted, model, **loading)
    ingest.write(corpus, language_model, where, wanted, batch_size, json, prune)


def _check_whole(inputs: list[str], source: str | None) -> None:
    """Raise UsageError for arguments that may leave out documents which are still there."""
    from knnlm_store.corpus.inputs import may_be_a_part

    parts = [text for text in inputs if may_be_a_part(text)]
    if parts and source is None:
        raise UsageError(
            f"{parts[0]} may be a part of its source only, and --prune forgets the rest.",
            hint="Name the folder, or say with --source NAME that these files are all of NAME.",
        )
