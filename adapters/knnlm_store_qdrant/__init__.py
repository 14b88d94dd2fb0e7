"""Qdrant adapter: a datastore on a server, `qdrant://HOST:PORT/NAME`, or in a local folder."""

from knnlm_store_qdrant.backend import QdrantBackend
from knnlm_store_qdrant.embedded import EmbeddedBackend

__all__ = ["EmbeddedBackend", "QdrantBackend"]
