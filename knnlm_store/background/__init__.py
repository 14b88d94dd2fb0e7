"""Text that no datastore is for: two public-domain texts, which always exist.

Where they do not help, a policy must learn to keep silent (fitted on its own domain alone, it would
never have seen a datastore that is the wrong one); and a model's key space is fitted on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from knnlm_store.corpus import Document

SOURCE = "knnlm-store"


def background_text() -> Iterator[Document]:
    """Yield sections of a novel and of speeches in turns, each a document."""
    for pair in zip(_sections("novel"), _sections("speeches"), strict=True):
        yield from pair


def _sections(name: str) -> list[Document]:
    text = files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return [
        Document(SOURCE, f"{name}/{number}", section, {}, len(section.encode()))
        for number, section in enumerate(text.split("\n\n\n"))
    ]
