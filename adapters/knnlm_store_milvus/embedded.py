"""A datastore in a file of Milvus Lite: the same adapter, which can compact."""

from __future__ import annotations

from pathlib import Path

from knnlm_store.backend import Compactable
from knnlm_store_milvus import compaction, lite, naming
from knnlm_store_milvus.backend import MilvusBackend


class LiteBackend(MilvusBackend, Compactable):
    """What MilvusBackend.connect gives for a file. A server compacts by itself."""

    def compact(self) -> None:
        """Take what was deleted out of the files of both collections."""
        with self._using():
            for collection in self._collections:
                compaction.compact(self._file, collection)

    def size(self) -> int | None:
        """Bytes of the folders of both collections; None if there is no datastore."""
        if not self.exists():
            return None
        return sum(lite.size_of(self._file, collection) for collection in self._collections)

    @property
    def _file(self) -> Path:
        assert self._place.lite is not None
        return self._place.lite

    @property
    def _collections(self) -> tuple[str, str]:
        return self._name, naming.records_of(self._name)
