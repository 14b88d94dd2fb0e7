"""`knnlm-store documents`, `history` and `verify`: what a datastore holds, and became."""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.cli.stores import StoreArgument
from knnlm_store.errors import UsageError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from knnlm_store.datastore import Datastore
    from knnlm_store.documents import DocumentRecord
    from knnlm_store.integrity import Finding, Integrity
    from knnlm_store.values import Entries

EXAMPLES = options.examples(
    "knnlm-store documents faiss:stores/law",
    "knnlm-store documents faiss:stores/law credit --where source=law --sort time --limit 20",
)
VERIFY_EXAMPLES = options.examples(
    "knnlm-store verify faiss:stores/law",
    "knnlm-store verify faiss:stores/law --mend",
)
_SORTS: dict[str, Callable[[DocumentRecord], Any]] = {
    "name": lambda d: d.id,
    "time": lambda d: (-d.version.at, d.id),
    "tokens": lambda d: (-d.version.tokens, d.id),
}


def documents(
    store: StoreArgument,
    text: Annotated[
        str | None,
        typer.Argument(help="Only those with this in their id, in any case.", show_default=False),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE of the metadata, or source=NAME; may be repeated.", show_default=False
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="By name, time (newest first) or tokens.")] = "name",
    limit: Annotated[
        int | None, typer.Option(help="Show at most so many.", min=1, show_default="all")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the documents of a datastore: tokens, bytes of input, and when they came in."""
    from knnlm_store.datastore import Datastore
    from knnlm_store.forgetting import fits, why_none_fits

    if sort not in _SORTS:
        raise UsageError(
            f"Documents are not sorted by {sort!r}.", hint=f"Use --sort {', '.join(_SORTS)}."
        )
    pairs = common.pairs("--where", where, "--where source=law")
    with Datastore.open(store) as opened:
        every = list(opened.documents())
    fitting = [d for d in every if fits(d, pairs)]
    if pairs and not fitting:
        output.say(why_none_fits(every, pairs))
    found = [d for d in fitting if text is None or text.lower() in d.id.lower()]
    found.sort(key=_SORTS[sort])
    if json:
        shown = [_described(document) for document in found[:limit]]
        output.print_json({"store": store, "found": len(found), "documents": shown})
        return
    _table(found[:limit])
    tokens = sum(document.version.tokens for document in found)
    output.say(f"{counted(len(found), 'document')}, {counted(tokens, 'token')}")


def _described(document: DocumentRecord) -> dict[str, Any]:
    version = document.version
    return {
        "id": document.id,
        "source": document.source,
        "name": document.name,
        "tokens": version.tokens,
        "bytes": version.size,
        "ingested": _iso(version.at),
        "metadata": dict(document.metadata),
        "earlier": [{"ingested": _iso(e.at), "tokens": e.tokens} for e in document.earlier],
    }


def _table(found: list[DocumentRecord]) -> None:
    from knnlm_store.corpus.values import shown

    if found:
        typer.echo(f"{'tokens':>10}{'size':>12}  {'ingested':<17} document")
    for document in found:
        version = document.version
        told = "".join(f"  {key}={value}" for key, value in document.metadata.items())
        typer.echo(
            f"{output.count(version.tokens):>10}{output.size(version.size):>12}  "
            f"{_when(version.at):<17} {shown(document.id + told)}"
        )


def history(
    store: StoreArgument,
    document: Annotated[
        str | None, typer.Option(help="The versions of this document, instead of runs.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many, the last ones.", min=1)] = 20,
    json: options.Json = False,
) -> None:
    """Tell what was done to a datastore, run by run; or what became of a document.

    Runs are told by counts, without names: what was forgotten is named nowhere.
    """
    from knnlm_store import history as log
    from knnlm_store.corpus.values import shown
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        if document is not None:
            _versions(opened, document, json)
            return
        runs = log.runs(opened.backend)[-limit:]
    if json:
        told = [
            {"ended": _iso(r.at), "what": r.what, "seconds": r.seconds, "counts": dict(r.counts)}
            for r in runs
        ]
        output.print_json({"store": store, "runs": told})
        return
    for run in runs:
        counts = ", ".join(_count(what, n) for what, n in run.counts.items())
        line = shown(f"{run.what:<8}{counts}")
        typer.echo(f"{_when(run.at)}  {line} ({output.duration(run.seconds)})")
    if not runs:
        output.say("Nothing is on record.")


def _count(what: str, n: int) -> str:
    return counted(n, "entry") if what == "entries" else f"{output.count(n)} {what}"


def _versions(store: Datastore, name: str, json: bool) -> None:
    from knnlm_store.forgetting import not_there

    known = {document.id: document for document in store.documents()}
    if name not in known:
        raise not_there([store], name, known)
    found = known[name]
    if json:
        output.print_json({"store": str(store.location)} | _described(found))
        return
    versions = [
        *((e.at, e.tokens) for e in found.earlier),
        (found.version.at, found.version.tokens),
    ]
    for at, tokens in versions:
        typer.echo(f"{_when(at)}  {counted(tokens, 'token')}")


def verify(
    store: StoreArgument,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help="Remove entries of no document, finish what killed runs left, and take damaged "
            "documents out, to be ingested again.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare the catalog with every entry. Exit code 1 where something is wrong and stays so."""
    from knnlm_store import integrity
    from knnlm_store.datastore import Datastore

    with Datastore.open(store) as opened:
        with output.progress("verify", None) as bar:
            entries = opened.backend.count()
            report = integrity.check(opened, lambda batches: _watched(batches, entries, bar))
        if mend and report.findings:
            with output.status("mending"):
                integrity.mend(opened, report)
    if json:
        output.print_json({"store": store, "whole": not report.findings} | report.json())
    else:
        _tell(report, store)
    if report.mended < len(report.findings) or report.again:
        raise typer.Exit(1)


def _watched(batches: Iterable[Entries], total: int, bar: output.Progress) -> Iterator[Entries]:
    started, done = time.monotonic(), 0
    for entries in batches:
        yield entries
        done += len(entries)
        bar.show_entries(done, total, time.monotonic() - started)


def _tell(report: Integrity, store: str) -> None:
    from knnlm_store.corpus.values import shown

    typer.echo(
        f"{counted(report.documents, 'document')}, {counted(report.entries, 'entry')}: "
        + ("all is well" if not report.findings else f"{len(report.findings)} wrong")
    )
    for finding in report.findings:
        what = shown(finding.document or f"version {finding.number}")
        typer.echo(f"{finding.kind}: {what}, {_entries(finding)}")
    if report.mended:
        typer.echo(f"mended: {report.mended}")
    for document in report.again:
        output.say(f"taken out, ingest it again: {shown(document)}")
    undone = [f.document for f in report.findings if f.undone and f.document]
    for source in sorted({name.partition("/")[0] for name in (*report.again, *undone)}):
        named = shlex.quote(shown(source))
        place = shlex.quote(store)
        output.say(f"For that: knnlm-store ingest --store {place} --source {named} FOLDER")
    if report.findings and not report.mended:
        output.say(f"To mend what can be mended: knnlm-store verify {shlex.quote(store)} --mend")


def _entries(finding: Finding) -> str:
    if finding.kind == "damaged":
        return f"{finding.found:,} of {counted(finding.expected, 'entry')}"
    of = "of no document" if finding.kind == "orphan" else "of a run that was ended"
    return f"{counted(finding.found, 'entry')} {of}" + "; ingest it again" * finding.undone


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")
