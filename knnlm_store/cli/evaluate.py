"""`knnlm-store eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from knnlm_store.cli import common
from knnlm_store.corpus import Corpus

if TYPE_CHECKING:
    from knnlm_store.evaluation import Evaluation


def evaluate(
    inputs: common.Inputs,
    model: common.Model,
    store: common.Store = None,
    backend: common.Backend = None,
    name: common.Name = None,
    url: common.Url = None,
    k: common.K = None,
    temperature: common.Temperature = None,
    lmbda: common.Lmbda = None,
    revision: common.Revision = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    batch_size: common.BatchSize = None,
    text_column: common.TextColumn_ = "text",
    id_column: common.IdColumn = "id",
    include: common.Include = None,
    exclude: common.Exclude = None,
    encoding: common.Encoding = "utf-8",
    stdin_format: common.StdinFormat = "text",
    limit: common.Limit = None,
    json: common.Json = False,
) -> None:
    """Score held-out text: perplexity of the plain model and with the datastore."""
    options = common.read_options(
        stdin_format,
        text_column=text_column,
        id_column=id_column,
        include=include,
        exclude=exclude,
        encoding=encoding,
        limit=limit,
    )
    corpus = Corpus(inputs, options)
    opened = common.open_store(
        common.location(store, backend, name, url), k=k, temperature=temperature, lmbda=lmbda
    )
    with opened.store:
        language_model = common.load_model_for(
            opened.store, model, revision=revision, device=device, dtype=dtype
        )
        from knnlm_store.evaluation import evaluate as run

        with common.progress_bar() as bar:
            task = bar.add_task("eval", total=corpus.total_bytes, told="")

            def show(result: Evaluation) -> None:
                scores = result.scores
                speed = scores.tokens / max(result.seconds, 1e-9)
                told = f"{common.count(scores.tokens)} tokens, {common.count(speed)}/s"
                bar.update(task, completed=result.bytes_read, told=told)

            result = run(
                corpus,
                language_model,
                opened.store,
                opened.mixture,
                batch_tokens=common.batch_tokens(language_model, batch_size),
                progress=show,
            )
        entries = opened.store.backend.count()
    report = result.json() | {
        "store": {"name": opened.store.location.name, "entries": entries},
        "settings": opened.settings(),
    }
    if json:
        common.print_json(report)
    else:
        _summary(report)
    common.tell_problems(result.problems)


def _summary(report: dict[str, dict[str, float]]) -> None:
    from rich.console import Console

    table = Table("perplexity", "per token", "per word", "per byte", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in (("plain", "plain model"), ("mixture", "with datastore")):
        row = report[name]
        table.add_row(
            label,
            f"{row['perplexity']:,.3f}",
            f"{row['perplexity_per_word']:,.3f}",
            f"{row['perplexity_per_byte']:,.4f}",
        )
    Console(highlight=False).print(table)
    change = 100 * (report["mixture"]["perplexity"] / report["plain"]["perplexity"] - 1)
    typer.echo(
        f"{common.count(report['tokens'])} tokens in {report['seconds']:,.1f} s; "  # type: ignore[arg-type]
        f"perplexity {change:+.1f} %"
    )
