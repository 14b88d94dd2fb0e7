"""What `sync --prune` does once the source was read: forget what left it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from knnlm_store.cli import output
from knnlm_store.cli.interrupt import stop_on_interrupt
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus
    from knnlm_store.datastore import Datastore
    from knnlm_store.forgetting import ForgetReport
    from knnlm_store.pruning import Leavers, Seen
    from knnlm_store.values import Location


_NAMED = 10


class Prune:
    """Forgets the documents of a source that were not in a whole reading of it.

    is_owed: whether something that may have left is still there.
    """

    def __init__(self, yes: bool) -> None:
        from knnlm_store.pruning import Seen

        self.seen: Seen = Seen()
        self.is_owed = False
        self._yes = yes

    def look(self, where: Location) -> None:
        """Note what the datastore holds, before the source is listed."""
        from knnlm_store.datastore import Datastore
        from knnlm_store.errors import StoreNotFound

        with suppress(StoreNotFound), Datastore.open(where) as store:
            self.seen.look(store)

    def foreseen(self, store: Datastore, corpus: Corpus) -> list[str]:
        """Give the documents that would be forgotten, after the same reading."""
        from knnlm_store.pruning import leavers

        if not corpus.complete:
            self.is_owed = True
            output.say("Nothing would be pruned: not everything of the source could be read.")
            return []
        gone = leavers(store, corpus.sources, self.seen)
        if gone.shrunk and not self._yes:
            output.say(f"{_shrunk(gone)} Without --yes you would be asked.")
        return sorted(gone.documents)

    def run(self, store: Datastore, corpus: Corpus, *, quiet: bool) -> dict[str, Any]:
        """Prune, tell of it unless quiet, and give it as a JSON-able object."""
        from knnlm_store.forgetting import ForgetReport, forget
        from knnlm_store.pruning import leavers
        from knnlm_store.retry import retrying

        if not corpus.complete:
            self.is_owed = True
            output.say("Nothing was pruned: not everything of the source could be read.")
            return {"pruned": ForgetReport().json()}
        gone = retrying()(leavers, store, corpus.sources, self.seen)
        if gone.shrunk and not self._yes:
            many = counted(_among(gone), "document")
            output.confirm(f"{_shrunk(gone)} Forget {many} of it?")
        report = ForgetReport()
        if gone.documents:
            with output.status("pruning"), stop_on_interrupt() as stop:
                report = forget(store, gone.documents, versions=gone.documents, stop=stop)
        self.is_owed = len(report.documents) < len(gone.documents)
        if not quiet:
            tell(report, "pruned")
        return {"pruned": report.json()}


def _shrunk(gone: Leavers) -> str:
    from knnlm_store.corpus.values import shown

    return f"More than half of {shown(', '.join(gone.shrunk))} left it."


def _among(gone: Leavers) -> int:
    """How many documents of the sources that shrank are gone."""
    return sum(document.partition("/")[0] in gone.shrunk for document in gone.documents)


def tell(report: ForgetReport, word: str) -> None:
    """Say what was forgotten, and what was not."""
    from knnlm_store.corpus.values import shown

    typer.echo(
        f"{word}: {counted(len(report.documents), 'document')}, {counted(report.entries, 'entry')}"
    )
    for document in report.documents[:_NAMED]:
        output.say(f"{word}: {shown(document)}")
    if len(report.documents) > _NAMED:
        output.say(f"and {output.count(len(report.documents) - _NAMED)} more; --json names all")
    for document in report.refused:
        output.say(f"not forgotten, another process writes it: {shown(document)}")
