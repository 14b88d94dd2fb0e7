"""`knnlm-store`: the application and its entry point."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from knnlm_store.cli import (
    alias,
    bundle,
    copy,
    doctor,
    documents,
    domains,
    evaluate,
    explain,
    forget,
    generate,
    ingest,
    options,
    output,
    stores,
    sync,
    tune,
)
from knnlm_store.errors import KnnlmError, UsageError

app = typer.Typer(
    name="knnlm-store",
    help="Give a language model a memory that lives in a vector store.\n\n"
    "Ingest a corpus, and every token of it becomes an entry of a datastore. At each step of "
    "the model the nearest entries vote on the next token.",
    epilog=options.examples(
        "knnlm-store ingest --backend faiss --model MODEL corpus/ --name law",
        "knnlm-store eval --store faiss:stores/law --model MODEL heldout/",
        'knnlm-store generate --store faiss:stores/law --model MODEL "The creditor shall"',
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
MANAGE, CHANGE = "Datastores", "Documents"
app.command(epilog=ingest.EXAMPLES)(ingest.ingest)
app.command(name="eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(rich_help_panel=CHANGE, epilog=sync.ADD_EXAMPLES)(sync.add)
app.command(rich_help_panel=CHANGE, epilog=sync.EXAMPLES)(sync.sync)
app.command(rich_help_panel=CHANGE, epilog=forget.EXAMPLES)(forget.forget)
app.command(rich_help_panel=CHANGE, epilog=documents.EXAMPLES)(documents.documents)
app.command(rich_help_panel=CHANGE)(documents.history)
app.command(rich_help_panel=CHANGE, epilog=documents.VERIFY_EXAMPLES)(documents.verify)
app.command(rich_help_panel=MANAGE)(stores.ls)
app.command(rich_help_panel=MANAGE)(stores.info)
app.command(rich_help_panel=MANAGE, epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(rich_help_panel=MANAGE, epilog=copy.EXAMPLES)(copy.copy)
app.command(rich_help_panel=MANAGE, epilog=bundle.EXPORT_EXAMPLES)(bundle.export)
app.command(name="import", rich_help_panel=MANAGE, epilog=bundle.IMPORT_EXAMPLES)(bundle.import_)
app.command(rich_help_panel=MANAGE)(stores.compact)
app.command(rich_help_panel=MANAGE, epilog=alias.EXAMPLES)(alias.alias)
app.add_typer(domains.app, name="domains", rich_help_panel=MANAGE)
app.command(rich_help_panel=MANAGE)(stores.rm)


def _version(wanted: bool) -> None:
    if wanted:
        import knnlm_store

        typer.echo(knnlm_store.__version__)
        raise typer.Exit


@app.callback()
def _root(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    output.set_up()


def main() -> None:
    """Run a command; a known error is one sentence and what to try next, exit code 1 or 2."""
    try:
        app()
    except KnnlmError as error:
        output.tell_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
