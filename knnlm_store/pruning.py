"""Which documents left their source: what the datastore holds of it, and the source no longer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore


@dataclass
class Seen:
    """Takes note of the documents that pass through."""

    ids: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    def through(self, corpus: Iterable[Document | Problem]) -> Iterator[Document | Problem]:
        """Pass a corpus through."""
        for item in corpus:
            if isinstance(item, Document):
                self.ids.add(item.id)
                self.sources.add(item.source)
            yield item


@dataclass(frozen=True, slots=True)
class Leavers:
    """Documents that left their sources: sorted ids; emptied: sources that have none left."""

    documents: list[str]
    emptied: list[str]


def leavers(store: Datastore, sources: set[str], seen: Seen) -> Leavers:
    """Find what `store` holds of these sources that was not seen in a whole reading of them.

    Documents of other sources are never among them.
    """
    gone = [d for d in store.documents() if d.source in sources and d.id not in seen.ids]
    emptied = {document.source for document in gone} - seen.sources
    return Leavers(sorted(document.id for document in gone), sorted(emptied))
