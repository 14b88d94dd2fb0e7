"""`knnlm-store tune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus
    from knnlm_store.datastore import Datastore
    from knnlm_store.models import LanguageModel
    from knnlm_store.tuning.tune import Tuned

TUNING = "Fitting"
EXAMPLES = options.examples(
    "knnlm-store tune faiss:stores/law --model MODEL valid/",
    "knnlm-store tune faiss:stores/law --model MODEL valid/ --test test/ --json",
)


def tune(
    store: Annotated[
        str,
        typer.Argument(
            help="The datastore, such as faiss:stores/law, or a domain's name.", show_default=False
        ),
    ],
    inputs: options.Inputs,
    model: options.Model,
    test: Annotated[
        list[str] | None,
        options.option(
            TUNING, "Folder or file that is only scored, after the fit; may be repeated."
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        options.option(
            TUNING,
            "Tokens of the validation text that are used, at most: as many of each document.",
            min=500,
        ),
    ] = 30_000,
    max_test_tokens: Annotated[
        int, options.option(TUNING, "The same of the text that is only scored.", min=1)
    ] = 100_000,
    k: Annotated[
        int,
        options.option(TUNING, "The largest number of neighbours that is tried.", "--k", min=1),
    ] = 1024,
    report: Annotated[
        Path | None,
        options.option(TUNING, "HTML file to write, with pictures of what was found."),
    ] = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = None,
    text_column: options.TextColumn = "text",
    id_column: options.IdColumn = "id",
    include: options.Include = None,
    exclude: options.Exclude = None,
    encoding: options.Encoding = "utf-8",
    stdin_format: options.StdinFormat = "text",
    limit: options.Limit = None,
    json: options.Json = False,
) -> None:
    """Fit how far the datastore is trusted, to text that is not in it.

    Finds the number of neighbours, the temperature and lambda that follows the evidence, and keeps
    them in the datastore: eval and generate use them from then on. Text that the datastore is not
    for, which ships with the program, is looked at as well, so that it learns to keep silent.
    Where nothing pays, they use the plain model, and the exit code is 1.
    """
    from knnlm_store.corpus import Corpus
    from knnlm_store.tuning.report import check_place, render, write

    if report is not None:
        check_place(report)
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
    where = common.location(store, None, None, None)
    valid = Corpus(inputs, reading)
    held_out = Corpus(test, reading) if test else None
    from knnlm_store.datastore import Datastore

    with Datastore.open(where) as opened:
        language_model = common.load_model_for(
            opened, model, revision=revision, device=device, dtype=dtype
        )
        tokens = common.batch_tokens(language_model, batch_size)
        tuned = _run(
            opened,
            language_model,
            valid,
            held_out,
            k=k,
            most=max_tokens,
            most_test=max_test_tokens,
            batch_tokens=tokens,
            draw=report is not None,
        )
    for warning in tuned.warnings:
        output.say(f"warning: {warning}")
    if json:
        output.print_json({"store": str(where), **tuned.json()})
    else:
        _summary(tuned)
    if report is not None and tuned.pictures is not None:
        write(report, render(tuned, tuned.pictures, str(where)))
    output.tell_problems(tuned.problems)
    if not tuned.pays:
        raise typer.Exit(1)


def _run(
    store: Datastore,
    model: LanguageModel,
    valid: Corpus,
    test: Corpus | None,
    **settings: Any,
) -> Tuned:
    from knnlm_store.errors import CorpusError
    from knnlm_store.tuning.cache import Reading
    from knnlm_store.tuning.tune import tune as run

    started: dict[str, float] = {}
    problems: list[Any] = []
    with output.progress("tune", None) as bar:

        def show(what: str, reading: Reading) -> None:
            if what not in started:
                started[what] = time.monotonic()
                bar.begin(f"tune: {_STAGES[what]}")
            if reading.tokens:
                bar.show(0, reading.tokens, time.monotonic() - started[what])

        held_out = None if test is None else common.noting(test, problems)
        try:
            return run(
                common.noting(valid, problems),
                model,
                store,
                test=held_out,
                progress=show,
                **settings,
            )
        except CorpusError:
            output.tell_problems(problems)  # they are why
            raise


def _summary(tuned: Tuned) -> None:
    _policies(tuned)
    for note in tuned.notes:
        typer.echo(note)
    for name, groups in tuned.groups.items():
        typer.echo(f"\ngain by {name}, nats a token: {_TOKENS[tuned.measured]}")
        for group, values in groups.items():
            if values["tokens"]:
                share = counted(values["tokens"], "token")
                typer.echo(f"  {group:<28}{values['gain']:>+8.3f}{share:>16}")
    if tuned.calibration is None or not tuned.pays:
        typer.echo(
            "\nNo policy pays on held-out text: eval and generate use the plain model from now on, "
            "but for --policy or --lmbda."
        )
        return
    mixture = tuned.calibration.mixture
    typer.echo(
        f"\nchosen: {tuned.calibration.chosen}, k {mixture.k}, temperature "
        f"{mixture.temperature:.4g}; kept in the datastore"
    )


_STAGES = {
    "valid": "validation text",
    "foreign": "foreign text",
    "fit": "fitting",
    "test": "test text",
}
_TOKENS = {"valid": "validation tokens (held-out folds)", "test": "test tokens"}


def _policies(tuned: Tuned) -> None:
    """Show perplexities, and how many tokens they are of."""
    texts = ["valid", "foreign", *(["test"] if tuned.measured == "test" else [])]
    row = ("{:<10}" + "{:>14}" * len(texts) + "{:>9}{:>8}").format
    heads = {"valid": "validation", "foreign": "foreign text", "test": "test"}
    typer.echo(row("policy", *map(heads.get, texts), "helped", "hurt"))
    counts = (f"{tuned.tokens[text]:,}" for text in texts)
    typer.echo(row("tokens", *counts, "", "").rstrip())
    for name, values in tuned.rows.items():
        cells = [f"{values['valid']['perplexity']:,.3f}", ""]
        shares = ["", ""]
        if name != "plain":
            cells[1] = f"{100 * (values['foreign_over_plain'] - 1):+.2f} %"
            shares = [f"{100 * values[tuned.measured][what]:.0f} %" for what in ("helped", "hurt")]
        if "test" in texts:
            cells.append(f"{values['test']['perplexity']:,.3f}")
        typer.echo(row(name, *cells, *shares).rstrip())
    typer.echo(
        f"helped, hurt: share of {_TOKENS[tuned.measured]} made likelier, unlikelier by over 1 %\n"
        "foreign text: the kind that suffers most, under fits that did not see it"
    )
