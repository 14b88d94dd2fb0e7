"""`knnlm-store doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.cli.stores import StoreArgument

if TYPE_CHECKING:
    from knnlm_store.datastore import Datastore
    from knnlm_store.doctor import Report
    from knnlm_store.manifest import Manifest
    from knnlm_store.values import Entries

EXAMPLES = options.examples(
    "knnlm-store doctor faiss:stores/law",
    "knnlm-store doctor faiss:stores/law --model MODEL --json",
    "knnlm-store doctor qdrant://localhost:6333/law --quick",
)
MEASURING = "Measuring"
_STATUSES = len("not run")


def doctor(
    store: StoreArgument,
    model: Annotated[
        str | None,
        options.option(
            options.MODEL,
            "The language model that is to use the datastore, to compare it with the one that "
            "wrote it: a Hugging Face hub id, a local folder, or a GGUF file.",
        ),
    ] = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    k: Annotated[
        int | None,
        options.option(
            MEASURING,
            "How many nearest entries the measured searches look up.",
            "--k",
            min=1,
            show_default="1024, or all entries if fewer",
        ),
    ] = None,
    sample: Annotated[
        int, options.option(MEASURING, "Stored entries to search for, drawn at random.", min=1)
    ] = 64,
    seed: Annotated[
        int, options.option(MEASURING, "The same seed draws the same entries.", min=0)
    ] = 0,
    quick: Annotated[
        bool,
        options.option(
            MEASURING, "Read the first entries only; recall is not measured.", "--quick"
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Check a datastore: that it can be reached, is whole, and finds what is nearest, in time.

    Reads every entry once or twice, to compare searches with brute force; --quick does not.
    Ends with exit code 1 if a check failed; warnings are no failure.
    """
    from knnlm_store import registry
    from knnlm_store.doctor import Plan, examine

    if model is not None:
        common.need_model_libraries()
    plan = Plan(sample=sample, seed=seed, quick=quick, **({} if k is None else {"k": k}))
    loading = {"revision": revision, "device": device, "dtype": dtype}
    report = examine(
        registry.parse(store),
        plan,
        read_model=None if model is None else _reader(model, loading),
        watch=_watch,
    )
    if json:
        output.print_json(report.json())
    else:
        _tell(report)
    if report.status == "failed":
        raise typer.Exit(1)


def _reader(model: str, loading: dict[str, str | None]) -> Callable[[Datastore], Manifest]:
    """Describe a model, loaded as a datastore needs it."""

    def read(store: Datastore) -> Manifest:
        needed = {"key": store.manifest.key, "window": store.manifest.window}
        return common.load_model(model, **needed, **loading).manifest()

    return read


def _watch(what: str, entries: int, batches: Iterable[Entries]) -> Iterator[Entries]:
    """Show the progress of a scan."""
    began, done = time.monotonic(), 0
    with output.progress(what, entries) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.show_entries(done, max(done, entries), time.monotonic() - began)


def _tell(report: Report) -> None:
    """Write a line for each check, and its hint below."""
    width = max(len(check.name) for check in report.checks)
    if report.checks[0].status == "failed":  # then all others say the same
        report.checks[1:] = []
    for check in report.checks:
        typer.echo(f"{check.status:<{_STATUSES}}  {check.name:<{width}}  {check.message}")
        if check.hint:
            typer.echo(" " * (_STATUSES + width + 4) + check.hint)
