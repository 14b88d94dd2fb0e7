"""Milvus adapter: a server, `milvus://HOST:PORT/NAME`, or Milvus Lite, `milvus:PATH.db/NAME`."""

from knnlm_store_milvus.backend import MilvusBackend

__all__ = ["MilvusBackend"]
