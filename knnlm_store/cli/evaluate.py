"""`knnlm-store eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from knnlm_store.cli import common, options, output

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus
    from knnlm_store.evaluation import Evaluation
    from knnlm_store.models import LanguageModel

EXAMPLES = options.examples(
    "knnlm-store eval --store faiss:stores/law --model MODEL heldout/",
    "knnlm-store eval --store faiss:stores/law --model MODEL heldout/ --k 256 --lmbda 0.15 --json",
)


def evaluate(
    inputs: options.Inputs,
    model: options.Model,
    store: options.Store = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = None,
    k: options.K = None,
    temperature: options.Temperature = None,
    lmbda: options.Lmbda = None,
    policy: options.Policy = None,
    text_column: options.TextColumn = "text",
    id_column: options.IdColumn = "id",
    include: options.Include = None,
    exclude: options.Exclude = None,
    encoding: options.Encoding = "utf-8",
    stdin_format: options.StdinFormat = "text",
    limit: options.Limit = None,
    json: options.Json = False,
) -> None:
    """Score held-out text: perplexity of the plain model and with the datastore.

    Perplexity says how many tokens the model hesitates between, on average: lower is better.
    Score text that was not ingested, or the datastore only repeats what it has seen.
    """
    from knnlm_store.corpus import Corpus

    common.need_model_libraries()
    reading = common.read_options(
        stdin_format,
        text_column=text_column,
        id_column=id_column,
        include=include,
        exclude=exclude,
        encoding=encoding,
        limit=limit,
    )
    where = common.location(store, backend, name, url)
    corpus = Corpus(inputs, reading)
    opened = common.open_store(where, k=k, temperature=temperature, lmbda=lmbda, policy=policy)
    with opened.store:
        language_model = common.load_model_for(
            opened.store, model, revision=revision, device=device, dtype=dtype
        )
        opened.announce()
        result = _run(corpus, language_model, opened, batch_size)
        report = result.json() | {"store": opened.describe(), "settings": opened.settings()}
    if json:
        output.print_json(report)
    else:
        _summary(report)
    output.tell_problems(result.problems)


def _run(
    corpus: Corpus, model: LanguageModel, opened: common.Opened, batch_size: int | None
) -> Evaluation:
    from knnlm_store.errors import CorpusError
    from knnlm_store.evaluation import evaluate as run

    problems: list[Any] = []
    try:
        with output.progress("eval", corpus.total_bytes) as bar:
            return run(
                common.noting(corpus, problems),
                model,
                opened.store,
                opened.mixture,
                batch_tokens=common.batch_tokens(model, batch_size),
                progress=lambda r: bar.show(r.bytes_read, r.scores.tokens, r.seconds),
            )
    except CorpusError:
        output.tell_problems(problems)  # they are why
        raise


def _summary(report: dict[str, Any]) -> None:
    row = "{:<15}{:>12}{:>14}{:>12}".format
    typer.echo(row("perplexity", "per token", "per word", "per byte"))
    for name, label in (("plain", "plain model"), ("mixture", "with datastore")):
        values = report[name]
        each = (values["perplexity" + unit] for unit in ("", "_per_word", "_per_byte"))
        typer.echo(row(label, *map(_short, each)))
    change = 100 * (report["mixture"]["perplexity"] / report["plain"]["perplexity"] - 1)
    typer.echo(
        f"{output.count(report['tokens'])} tokens in {report['seconds']:,.1f} s; "
        f"perplexity {change:+.1f} %"
    )


def _short(perplexity: float) -> str:
    return f"{perplexity:,.3f}" if perplexity < 1e6 else f"{perplexity:.3g}"
