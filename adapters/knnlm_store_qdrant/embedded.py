"""A datastore in a folder, kept by the embedded engine: the same adapter, which can compact."""

from __future__ import annotations

from knnlm_store.backend import Compactable
from knnlm_store_qdrant import compaction, naming
from knnlm_store_qdrant.backend import QdrantBackend


class EmbeddedBackend(QdrantBackend, Compactable):
    """What QdrantBackend.connect gives for a folder. A server compacts by itself."""

    def compact(self) -> None:
        """Have the files of both collections made anew, with an index if there was to be one."""
        self.spec()
        with self._answering():
            compaction.compact(self._server, self._collections)

    def size(self) -> int | None:
        """Bytes that both collections take on disk; None if there is no datastore."""
        return self._server.size(self._collections) if self.exists() else None

    @property
    def _collections(self) -> tuple[str, str]:
        return self._collection, naming.records_of(self._collection)
