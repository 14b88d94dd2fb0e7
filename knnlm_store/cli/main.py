"""`knnlm-store`: the application and its entry point."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from knnlm_store.cli import evaluate, generate, ingest, stores
from knnlm_store.cli.common import set_up_logging, tell_error
from knnlm_store.errors import KnnlmError, UsageError

app = typer.Typer(
    name="knnlm-store",
    help="Give a language model a memory that lives in a vector store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(ingest.ingest)
app.command(name="eval")(evaluate.evaluate)
app.command()(generate.generate)
app.command()(stores.info)
app.command()(stores.ls)
app.command()(stores.rm)
app.command()(stores.compact)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("knnlm-store"))
        raise typer.Exit


@app.callback()
def _root(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    set_up_logging()


def main() -> None:
    """Run a command; a known error is one sentence and what to try next, exit code 1 or 2."""
    try:
        app()
    except KnnlmError as error:
        tell_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
