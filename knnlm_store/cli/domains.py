"""`knnlm-store domains`: names for datastores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knnlm_store.cli import common, options, output

if TYPE_CHECKING:
    from knnlm_store.domains import Domain

EXAMPLES = options.examples(
    "knnlm-store domains set law qdrant://localhost:6333/law",
    'knnlm-store generate --domain law --model MODEL "The creditor shall"',
)
app = typer.Typer(invoke_without_command=True, epilog=EXAMPLES)


@app.callback()
def domains(
    context: typer.Context, config: options.Config = None, json: options.Json = False
) -> None:
    """List the domains, and the datastores that they stand for; `set` changes one."""
    from knnlm_store.domains import FILE, Domains

    if context.invoked_subcommand is not None:
        context.obj = config
        return
    found = Domains.read(config)
    if json:
        file = None if found.path is None else str(found.path)
        each = {name: domain.json() for name, domain in found.domains.items()}
        output.print_json({"file": file, "domains": each})
        return
    for domain in found.domains.values():
        typer.echo(_described(domain))
    if not found.domains:
        where = (
            f"{found.path} names no domains" if found.path else f"There is no {FILE} here or above"
        )
        output.say(f"{where}; set one: knnlm-store domains set NAME STORE")


@app.command(name="set", epilog=EXAMPLES)
def set_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The domain.", show_default=False)],
    store: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE...",
            help="The datastore, as BACKEND:PATH/NAME; several are pooled.",
            show_default=False,
        ),
    ],
    config: options.Config = None,
) -> None:
    """Have a domain stand for a datastore, or for another one, in one step.

    Who has the domain in use already keeps the datastore that it stood for; the next use gets the
    new one. Its settings stay.
    """
    from knnlm_store.datastore import Datastore
    from knnlm_store.domainfile import set_domain
    from knnlm_store.domains import FILE, check_name, find

    check_name(name)
    for where in common.locations(store, None, None, None):
        Datastore.open(where).close()  # one that is not there is told now
    path = config or context.obj or find() or Path(FILE)
    typer.echo(_described(set_domain(path, name, store)))


def _described(domain: Domain) -> str:
    stores = " + ".join(map(str, domain.stores))
    said = dict(domain.settings)
    if domain.blend is not None:
        said["blend"] = ",".join(map(str, domain.blend))
    settings = ", ".join(f"{name} {value}" for name, value in said.items())
    return f"{domain.name} -> {stores}" + (f" ({settings})" if settings else "")
