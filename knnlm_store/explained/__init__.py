"""Explanations as one self-contained page: nothing in it is fetched, and nothing runs."""

from knnlm_store.explained.page import page_of

__all__ = ["page_of"]
