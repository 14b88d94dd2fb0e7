"""FAISS adapter: a datastore in a local folder, `faiss:PATH/NAME`."""

from knnlm_store_faiss.backend import FaissBackend

__all__ = ["FaissBackend"]
