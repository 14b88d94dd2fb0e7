"""How explanations are shown on a terminal, and written as a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from knnlm_store.cli import output
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.attribution import Explanation, Ranked, Source, TokenTrace

_WIDTH = 16  # columns of a token's text
_TITLE = 60  # characters of a text in its title
_RANKED = 10  # documents in a list

PAGE = "page"
AGAIN = "Run it again with another --html."


def printable(text: str) -> str:
    """Give text on one line, without what a terminal obeys."""
    from knnlm_store.corpus.values import shown

    return shown(text)


def title_of(text: str) -> str:
    """Give a text's beginning on one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _TITLE else line[: _TITLE - 1] + "\N{HORIZONTAL ELLIPSIS}"


def write_page(path: Path, titled: Sequence[tuple[str, Explanation]]) -> None:
    """Write explanations, each with a title, as one page."""
    from knnlm_store import pages
    from knnlm_store.explained import page_of

    pages.write(path, page_of(titled), PAGE, hint=AGAIN)
    output.say(f"written: {path}")


def show_tokens(explanation: Explanation) -> None:
    """Print a line for each token: what the model and the datastore made of it."""
    compares = bool(explanation.without)
    head = f"{'token':<{_WIDTH}}{'p_LM':>9}{'p_kNN':>9}{'lambda':>9}{'p':>9}"
    head += f"{'without':>9}{'change':>10}" if compares else ""
    typer.echo(head + f"{'share':>9}  best source")
    several = len({document.store for document in explanation.documents}) > 1
    for token in explanation.tokens:
        best = _best(token.sources, several)
        typer.echo((_figures(token, compares) + best).rstrip())


def _figures(token: TokenTrace, compares: bool) -> str:
    from rich.cells import set_cell_size

    values = (token.p_lm, token.p_knn, token.lmbda, token.p)
    line = set_cell_size(_text(token.text), _WIDTH) + "".join(map(_probability, values))
    if compares and token.p_without is not None:
        change = token.p_without - token.p
        line += _probability(token.p_without) + f"{change:>+10.4f}"
    return line


def _text(text: str) -> str:
    """Show a token's text on one line; one of nothing but spaces in quotes."""
    line = printable(text)
    return line if line.strip() or not line else f'"{line}"'


def _probability(p: float) -> str:
    return f"{p:>9.4f}" if p == 0 or p >= 0.001 else f"{p:>9.0e}"


def _best(sources: Sequence[Source], several: bool) -> str:
    if not sources:
        return ""
    return f"{_probability(sources[0].share)}  {_document(sources[0], several)}"


def _document(what: Source | Ranked, several: bool) -> str:
    name = "(not in the catalog)" if what.document is None else printable(what.document)
    return f"{name} in {what.store}" if several else name


def show_documents(explanation: Explanation) -> None:
    """Print a line for each document, the largest contribution first."""
    ranked, tokens = explanation.documents, counted(len(explanation.tokens), "token")
    if not ranked:
        typer.echo("no document has a share in it")
        return
    several = len({document.store for document in ranked}) > 1
    typer.echo(f"{'worth':>9}{'in':>9}  document (worth, in: of {tokens})")
    for each in ranked[:_RANKED]:
        counts = f"{each.contribution:>9.2f}{output.count(each.tokens):>9}"
        typer.echo(f"{counts}  {_document(each, several)}")
    if len(ranked) > _RANKED:
        typer.echo(f"and {counted(len(ranked) - _RANKED, 'more document')}")


def show_total(explanation: Explanation) -> None:
    """Print the log-probability of all tokens, and what it is without the documents."""
    total, without = log_probabilities(explanation)
    line = f"log-probability {total:.3f}"
    if without is not None:
        named = ", ".join(map(printable, explanation.without))
        change = without - total if math.isfinite(total) else math.nan
        line += f"; without {named} {without:.3f} ({change:+.3f})"
    typer.echo(line)


def log_probabilities(explanation: Explanation) -> tuple[float, float | None]:
    """Give the log of the probability of all tokens together, and without the documents."""
    tokens = explanation.tokens
    total = _log_product(token.p for token in tokens)
    if not explanation.without:
        return total, None
    return total, _log_product(t.p_without for t in tokens if t.p_without is not None)


def _log_product(values: Iterable[float]) -> float:
    return math.fsum(math.log(p) if p > 0 else -math.inf for p in values)
