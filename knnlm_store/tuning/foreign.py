"""Text that the datastore is most likely not for: a novel, speeches, Python's language reference.

The first two ship with the program, the last with Python; together they show a policy prose and
technical text where it must learn to keep silent. What a datastore holds of it is left out, see
known.py: there it would rightly speak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from knnlm_store.background import SOURCE, background_text
from knnlm_store.corpus import Document

_CHARACTERS = 2400  # of each document: many short ones show more than a few long ones


def foreign_text() -> Iterator[Document]:
    """Yield documents of all three, in turns: some 20 thousand tokens."""
    prose = [(document.name, document.text) for document in background_text()]
    topics = _topics()
    reference = [
        (f"python/{name}", topics[name])
        for name in sorted(topics)
        if len(topics[name]) >= _CHARACTERS
    ]
    for group in zip_longest(prose[::2], prose[1::2], reference[::2]):
        for name, text in filter(None, group):
            cut = text[:_CHARACTERS]
            yield Document(SOURCE, name, cut, {}, len(cut.encode()))


def source_of(name: str) -> str:
    """Which of the three a document is of: novel, speeches or python."""
    return name.rpartition("/")[0].removeprefix(f"{SOURCE}/")


def _topics() -> Mapping[str, str]:
    """Python's language reference by topic; of a Python that was trimmed, nothing."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics
