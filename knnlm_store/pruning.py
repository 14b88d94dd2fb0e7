"""Which documents left their source: what the datastore held of it, and a whole reading has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore


@dataclass
class Seen:
    """Takes note of the documents that pass through.

    before: what the datastore held before the source was listed, ids to numbers of versions: what
    another process brings in later is not taken for something that left.
    """

    before: dict[str, int] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def look(self, store: Datastore) -> None:
        """Note what the datastore holds."""
        self.before = {d.id: d.version.number for d in store.documents()}

    def through(self, corpus: Iterable[Document | Problem]) -> Iterator[Document | Problem]:
        """Pass a corpus through; a document that is empty now is there all the same."""
        for item in corpus:
            if isinstance(item, Document):
                self.ids.add(item.id)
            elif item.document is not None:
                self.ids.add(item.document)
            yield item


@dataclass(frozen=True, slots=True)
class Leavers:
    """Documents that left their sources, with the versions that did.

    shrunk: sources of which more than half left, sorted: perhaps another folder of that name.
    """

    documents: Mapping[str, int]
    shrunk: list[str]


def leavers(store: Datastore, sources: set[str], seen: Seen) -> Leavers:
    """Find what `store` holds of these sources that was not seen in a whole reading of them.

    Never among them: documents of other sources, and versions that came after `seen.look`.
    """
    gone = {
        document.id: document.version.number
        for document in store.documents()
        if document.source in sources
        and document.id not in seen.ids
        and seen.before.get(document.id) == document.version.number
    }
    held, left = (Counter(id_.partition("/")[0] for id_ in ids) for ids in (seen.before, gone))
    shrunk = sorted(source for source, count in left.items() if 2 * count > held[source])
    return Leavers(gone, shrunk)
