"""`knnlm-store forget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, options, output
from knnlm_store.cli.interrupt import stop_on_interrupt
from knnlm_store.cli.prune import tell
from knnlm_store.errors import StoreError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.datastore import Datastore
    from knnlm_store.forgetting import ForgetReport, Proof

EXAMPLES = options.examples(
    "knnlm-store forget law/a.txt --store faiss:stores/law",
    "knnlm-store forget --where source=law --where language=en --store faiss:stores/law --verify",
)


def forget(
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of documents, as knnlm-store documents shows them.", show_default=False
        ),
    ] = None,
    store: options.Store = None,
    domain: options.DomainName = None,
    config: options.Config = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE, of the metadata given at ingest, or source=NAME; repeated, all of "
            "them must fit.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove that nothing is left; reads all entries.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell which documents would go.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --where: do not ask.")] = False,
    json: options.Json = False,
) -> None:
    """Take documents out of a datastore, with every entry of theirs.

    The datastore may be in use meanwhile. No search finds them from the moment that this ends.
    """
    from knnlm_store.catalog import Catalog
    from knnlm_store.datastore import Datastore
    from knnlm_store.forgetting import choose
    from knnlm_store.retry import retrying

    place = common.location(store, backend, name, url, domain=domain, config=config)
    pairs = common.pairs("--where", where, "--where source=law")
    with Datastore.open(place) as opened:
        try:
            chosen = choose(opened, documents or [], pairs)
        except StoreError:
            if not dry_run:  # a killed run may have left no more of them than its claims
                retrying()(Catalog(opened.backend).recover)
            raise
        if dry_run:
            _tell_chosen(chosen, json)
            return
        if pairs and not yes:
            output.confirm(f"Forget {counted(len(chosen), 'document')} of {place}?")
        report = _run(opened, chosen, verify, json)
    if report.proof is not None and not report.proof.holds:
        output.say("Something is left; see: knnlm-store verify " + str(place))
        raise typer.Exit(1)
    if report.refused:
        raise typer.Exit(1)
    if len(report.documents) < len(chosen):
        done, all_ = output.count(len(report.documents)), counted(len(chosen), "document")
        output.say(f"Interrupted: {done} of {all_} forgotten.")
        raise typer.Exit(130)


def _run(store: Datastore, chosen: list[str], verify: bool, json: bool) -> ForgetReport:
    from knnlm_store.forgetting import forget as run
    from knnlm_store.forgetting import remains

    with output.status("forgetting"), stop_on_interrupt() as stop:
        report = run(store, chosen, verify=verify, stop=stop)
    left = remains(store)
    if json:
        where = {"store": str(store.location)}
        output.print_json(where | report.json() | {"may_remain": left})
        return report
    tell(report, "forgotten")
    if report.proof is not None:
        typer.echo(_proved(report.proof))
    for sentence in left:
        output.say(sentence)
    return report


def _proved(proof: Proof) -> str:
    return (
        f"verified: {counted(proof.by_id, 'entry')} by id, {proof.by_filter} by document, "
        f"{proof.by_search} in searches for {proof.keys} of their own keys, "
        f"{proof.records} in the catalog"
    )


def _tell_chosen(chosen: list[str], json: bool) -> None:
    if json:
        output.print_json({"dry_run": True, "documents": chosen})
        return
    from knnlm_store.corpus.values import shown

    for document in chosen:
        typer.echo(shown(document))
    output.say(f"{counted(len(chosen), 'document')} would be forgotten; nothing was.")
