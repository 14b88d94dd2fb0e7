"""`knnlm-store explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, naming, opening, options, output, settling, texts, traces
from knnlm_store.errors import UsageError

if TYPE_CHECKING:
    from knnlm_store.attribution import Explanation

EXPLAINING = "Explaining"
EXAMPLES = options.examples(
    'knnlm-store explain --store faiss:stores/law --model MODEL "The creditor shall disclose it."',
    "knnlm-store explain --store faiss:stores/law --model MODEL --file answer.txt --html page.html",
    'knnlm-store explain --store faiss:stores/law --model MODEL "The creditor shall" '
    "--without law/a.txt",
)
_HINT = 'Name one, as in: knnlm-store explain --store STORE "The law is", or pipe it in.'


def explain(
    model: options.Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            help="Texts, each explained as a document's beginning; -, or none, reads one from "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        options.option(EXPLAINING, "A file of text; may be repeated.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        options.option(
            EXPLAINING,
            "Id of a document: what would change if it were not there; may be repeated: all of "
            "them together.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int, options.option(EXPLAINING, "Documents that are told of for one token.", min=1)
    ] = 5,
    html: Annotated[
        Path | None, options.option(EXPLAINING, "HTML file to write, to look at in a browser.")
    ] = None,
    store: options.Stores = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    k: options.K = None,
    temperature: options.Temperature = None,
    lmbda: options.Lmbda = None,
    policy: options.Policy = None,
    blend: options.Blend = None,
    blend_from: options.BlendFrom = None,
    tune_from: options.TuneFrom = None,
    json: options.Json = False,
) -> None:
    """Tell for each token of a text which documents made it likely.

    Of its probability p, the datastore makes lambda * p_kNN; shares are a document's part of
    p_kNN. What a document changes is what --without shows.
    """
    from knnlm_store import pages

    common.need_model_libraries()
    if html is not None:
        pages.check_place(html, traces.PAGE)
    where, k, temperature, lmbda, policy, blend = naming.named(
        store, backend, name, url, domain=domain, config=config, k=k, temperature=temperature,
        lmbda=lmbda, policy=policy, blend=blend, fitted=blend_from or tune_from,
    )  # fmt: skip
    blending = opening.read_blending(len(where), blend, blend_from)
    tuning = opening.read_tuning(
        len(where), tune_from,
        temperature=temperature, lmbda=lmbda, policy=policy, blend=blend, blend_from=blend_from,
    )  # fmt: skip
    policies = settling.one_policy(policy, "explained")
    given = _texts(text or [], file or [])
    said: dict[str, Any] = {"k": k, "temperature": temperature, "lmbda": lmbda, "tuning": tuning}
    with opening.opened(where, policies=policies, blending=blending, **said) as opened:
        loading = {"revision": revision, "device": device, "dtype": dtype}
        explained = _run(opened, given, model, loading, top, without or [])
        report = opened.report() if json else {}
    if json:
        output.print_json({"explanations": list(map(_described, explained)), **report})
    else:
        _show(explained)
    if html is not None:
        traces.write_page(html, explained)


def _texts(arguments: list[str], files: list[Path]) -> list[tuple[str, str]]:
    """Give each text with its title. Raises UsageError for one that is empty."""
    from knnlm_store.corpus.values import surrogate

    if not arguments and not files:
        arguments = ["-"]
    found = []
    for argument in arguments:
        if argument == "-":
            found.append(("standard input", texts.from_stdin("text", _HINT)))
        else:
            found.append((traces.title_of(argument), argument))
    found += [(traces.printable(str(file)), texts.from_file(file)) for file in files]
    for title, text in found:
        if not text:
            raise UsageError(f"There is no text in {title or 'an argument'}.", hint=_HINT)
        if surrogate(text):
            raise UsageError("A text is not UTF-8.", hint="Convert it first, for example by iconv.")
    return found


def _run(
    opened: opening.Opened,
    given: list[tuple[str, str]],
    model: str,
    loading: dict[str, Any],
    top: int,
    without: list[str],
) -> list[tuple[str, Explanation]]:
    from knnlm_store.tracing import require_documents

    require_documents(opened.stores, without)
    language_model = opened.load(model, **loading)
    opened.announce()
    opened.fit(language_model, common.batch_tokens(language_model, None))
    from knnlm_store.explaining import explain as run

    settings: dict[str, Any] = {"top": top, "without": without}
    with output.status("explaining"):
        return [
            (title, run(language_model, opened.source, opened.mixture, text, **settings))
            for title, text in given
        ]


def _described(titled: tuple[str, Explanation]) -> dict[str, Any]:
    title, explanation = titled
    log_p, log_p_without = traces.log_probabilities(explanation)
    totals = {"log_p": log_p, "log_p_without": log_p_without}
    return {"title": title, **totals, **explanation.json()}


def _show(explained: list[tuple[str, Explanation]]) -> None:
    for i, (title, explanation) in enumerate(explained):
        if len(explained) > 1:
            typer.echo(f"{chr(10) * bool(i)}{title}\n")
        traces.show_tokens(explanation)
        typer.echo()
        traces.show_documents(explanation)
        typer.echo()
        traces.show_total(explanation)
