"""What a sync would do, document by document; nothing is written, and no model is needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from knnlm_store.comparing import step_for
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore


@dataclass
class Preview:
    """Ids of documents, by what would be done with them.

    forget: None where nothing is pruned. A document that gives no tokens counts as one to add.
    """

    add: list[str] = field(default_factory=list)
    change: list[str] = field(default_factory=list)
    change_metadata: list[str] = field(default_factory=list)
    forget: list[str] | None = None
    unchanged: int = 0
    problems: list[Problem] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Give the preview as one JSON-able object."""
        fields = asdict(self)
        if self.forget is None:
            del fields["forget"]
        return fields


def preview(corpus: Iterable[Document | Problem], store: Datastore | None) -> Preview:
    """Compare a corpus with a datastore, or with None where there is none yet."""
    known = {document.id: document for document in store.documents()} if store else {}
    found = Preview()
    for item in corpus:
        if isinstance(item, Problem):
            found.problems.append(item)
        elif (step := step_for(item, known.get(item.id))) == "keep":
            found.unchanged += 1
        else:
            getattr(found, step).append(item.id)
    return found
