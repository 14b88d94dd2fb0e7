"""Milvus adapter: a server, `milvus://HOST:PORT/NAME`, or Milvus Lite, `milvus:PATH.db/NAME`."""

import os

# gRPC writes to stderr of every handshake that fails, and asks this but once.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from knnlm_store_milvus.backend import MilvusBackend
from knnlm_store_milvus.embedded import LiteBackend

__all__ = ["LiteBackend", "MilvusBackend"]
