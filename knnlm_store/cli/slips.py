"""What looks like a slip of the pen is told before a model is loaded, and no error."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from knnlm_store.cli import output

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus
    from knnlm_store.values import Location


def tell(corpus: Corpus, where: Location, source: str | None) -> None:
    """Say which metadata columns may be nowhere, and that a source that was named is a new one."""
    from knnlm_store.wording import listed

    if corpus.doubt:
        output.say(f"warning: {corpus.doubt}")
    known = set() if source is None else _sources(where)
    if source is not None and known and source not in known:
        output.say(f"new source {source!r}; the datastore has {listed(known)}")


def _sources(where: Location) -> set[str]:
    """Give the sources that a datastore has; none where there is no datastore."""
    from knnlm_store.datastore import Datastore
    from knnlm_store.errors import StoreNotFound

    with suppress(StoreNotFound), Datastore.open(where) as store:
        return {document.source for document in store.documents()}
    return set()
