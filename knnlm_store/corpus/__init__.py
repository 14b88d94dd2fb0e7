"""From what a user names (folders, files, patterns, streams, hub datasets) to documents.

Reading is streamed: one document is in memory at a time. What cannot be read becomes a
`Problem` in the same stream, one line each, and reading goes on behind it. Nothing here knows
tokens, keys or datastores.
"""

from knnlm_store.corpus.stream import Corpus
from knnlm_store.corpus.values import Document, Problem, ReadOptions

__all__ = ["Corpus", "Document", "Problem", "ReadOptions"]
