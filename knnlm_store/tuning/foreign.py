"""Text that the datastore is most likely not for, of five kinds.

A novel, speeches, entries of a dictionary of hackers' slang and pages of a database's documentation
ship with the program, Python's language reference with Python. Together they show a policy prose
and technical text, in several layouts, where it must learn to keep silent. What a datastore holds
of them is left out, see known.py: there it would rightly speak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from knnlm_store.background import SOURCE, sections
from knnlm_store.corpus import Document
from knnlm_store.tuning.layout import laid_out

_CHARACTERS = 2400  # of each document: many short ones show more than a few long ones


def foreign_text() -> Iterator[Document]:
    """Yield documents of all five, in turns: some 30 thousand tokens."""
    kinds = {
        "novel": _novel(),
        "speeches": _speeches(),
        "jargon": sections("jargon"),
        "sqlite": sections("sqlite"),
    }
    numbered = [
        [(f"{kind}/{number}", text) for number, text in enumerate(texts)]
        for kind, texts in kinds.items()
    ]
    for group in zip_longest(*numbered, _reference()):
        for name, text in filter(None, group):
            cut = text[:_CHARACTERS]
            yield Document(SOURCE, name, cut, {}, len(cut.encode()))


def source_of(name: str) -> str:
    """Which of the five a document is of: novel, speeches, jargon, sqlite or python."""
    return name.rpartition("/")[0].removeprefix(f"{SOURCE}/")


def _novel() -> list[str]:
    texts = []
    for number, section in enumerate(sections("novel")):
        title, _, body = section.strip().partition("\n\n")
        front = {"Chapter": str(number + 1), "Title": title}
        texts.append(laid_out(number, f"Chapter {number + 1}. {title}", front, body))
    return texts


def _speeches() -> list[str]:
    texts = []
    for number, section in enumerate(sections("speeches")):
        year, _, body = section.strip().partition("\n\n")
        front = {"Year": year, "Title": "Annual Message to Congress"}
        texts.append(laid_out(number, year, front, body))
    return texts


def _reference() -> list[tuple[str, str]]:
    """Every other long topic, by name, of Python's language reference."""
    topics = _topics()
    long = [name for name in sorted(topics) if len(topics[name]) >= _CHARACTERS]
    return [(f"python/{name}", topics[name]) for name in long[::2]]


def _topics() -> Mapping[str, str]:
    """Python's language reference by topic; of a Python that was trimmed, nothing."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics
