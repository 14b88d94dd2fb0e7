"""`knnlm-store eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from knnlm_store.cli import common, naming, opening, options, output
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus
    from knnlm_store.evaluation import Evaluation
    from knnlm_store.models import LanguageModel

EXAMPLES = options.examples(
    "knnlm-store eval --store faiss:stores/law --model MODEL heldout/",
    "knnlm-store eval --store faiss:stores/law --model MODEL heldout/ --k 256 --lmbda 0.15 --json",
    "knnlm-store eval --store faiss:stores/law --model MODEL heldout/ --policy all",
    "knnlm-store eval --store faiss:stores/law --store faiss:stores/mine --model MODEL heldout/ "
    "--blend-from valid/",
)


def evaluate(
    inputs: options.Inputs,
    model: options.Model,
    store: options.Stores = None,
    domain: options.DomainName = None,
    config: options.Config = None,
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
    policy: options.Policies = None,
    blend: options.Blend = None,
    blend_from: options.BlendFrom = None,
    tune_from: options.TuneFrom = None,
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
    where, k, temperature, lmbda, chosen, blend = naming.named(
        store, backend, name, url, domain=domain, config=config, k=k, temperature=temperature,
        lmbda=lmbda, policy=policy, blend=blend, fitted=blend_from or tune_from,
    )  # fmt: skip
    policy = [chosen] if isinstance(chosen, str) else chosen
    blending = opening.read_blending(len(where), blend, blend_from, reading)
    tuning = opening.read_tuning(
        len(where), tune_from, reading,
        temperature=temperature, lmbda=lmbda, policy=policy, blend=blend, blend_from=blend_from,
    )  # fmt: skip
    corpus = Corpus(inputs, reading)
    said: dict[str, Any] = {"k": k, "temperature": temperature, "lmbda": lmbda, "tuning": tuning}
    with opening.opened(where, policies=policy, blending=blending, **said) as opened:
        language_model = opened.load(model, revision=revision, device=device, dtype=dtype)
        opened.announce()
        tokens = common.batch_tokens(language_model, batch_size)
        opened.fit(language_model, tokens)
        result = _run(corpus, language_model, opened, tokens)
        report = result.json() | opened.report()
        for policy_name, part in opened.compared.items():
            report["policies"][policy_name]["settings"] = part.settings()
    if json:
        output.print_json(report)
    else:
        _summary(report)
    output.tell_problems(result.problems)


def _run(
    corpus: Corpus, model: LanguageModel, opened: opening.Opened, batch_tokens: int
) -> Evaluation:
    from knnlm_store import evaluation
    from knnlm_store.errors import CorpusError

    problems: list[Any] = []
    mixtures = {name: part.mixture for name, part in opened.compared.items()}
    try:
        with output.progress("eval", corpus.total_bytes) as bar:
            text = common.noting(corpus, problems)
            settings: dict[str, Any] = {
                "batch_tokens": batch_tokens,
                "progress": lambda r: bar.show(r.bytes_read, r.scores.tokens, r.seconds),
            }
            if mixtures:
                source = opened.parts[0].source
                return evaluation.compare(text, model, source, mixtures, **settings)
            return evaluation.evaluate(text, model, opened.source, opened.mixture, **settings)
    except CorpusError:
        output.tell_problems(problems)  # they are why
        raise


def _summary(report: dict[str, Any]) -> None:
    took = f"{counted(report['tokens'], 'token')} in {report['seconds']:,.1f} s"
    if "policies" in report:
        _compared(report)
        typer.echo(took)
        return
    row = "{:<15}{:>12}{:>14}{:>12}".format
    typer.echo(row("perplexity", "per token", "per word", "per byte"))
    several = "s" if len(report["stores"]) > 1 else ""
    for name, label in (("plain", "plain model"), ("mixture", f"with datastore{several}")):
        values = report[name]
        each = (values["perplexity" + unit] for unit in ("", "_per_word", "_per_byte"))
        typer.echo(row(label, *map(_short, each)))
    typer.echo(f"{took}; perplexity {_change(report, report['mixture'])}")


def _compared(report: dict[str, Any]) -> None:
    row = "{:<13}{:>12}{:>11}{:>9}{:>9}".format
    typer.echo(row("policy", "perplexity", "change", "helped", "hurt"))
    typer.echo(row("plain model", _short(report["plain"]["perplexity"]), "", "", "").rstrip())
    for name, values in report["policies"].items():
        shares = (f"{100 * values[which]:.1f} %" for which in ("helped", "hurt"))
        typer.echo(row(name, _short(values["perplexity"]), _change(report, values), *shares))
    typer.echo("helped, hurt: share of tokens made likelier, unlikelier by over 1 %")


def _change(report: dict[str, Any], values: dict[str, Any]) -> str:
    return f"{100 * (values['perplexity'] / report['plain']['perplexity'] - 1):+.1f} %"


def _short(perplexity: float) -> str:
    return f"{perplexity:,.3f}" if perplexity < 1e6 else f"{perplexity:.3g}"
