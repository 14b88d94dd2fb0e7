"""Text that most datastores are not for: public-domain texts, which always exist.

Where they do not help, a policy must learn to keep silent: fitted on its own domain alone, it would
never have seen a datastore that is the wrong one. A model's key space is fitted on the first two.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from knnlm_store.corpus import Document

SOURCE = "knnlm-store"


def background_text() -> Iterator[Document]:
    """Yield sections of a novel and of speeches in turns, each a document."""
    for number, pair in enumerate(zip(sections("novel"), sections("speeches"), strict=True)):
        for name, section in zip(("novel", "speeches"), pair, strict=True):
            yield Document(SOURCE, f"{name}/{number}", section, {}, len(section.encode()))


def sections(name: str) -> list[str]:
    """Sections of one of the texts: novel, speeches, jargon or sqlite."""
    text = files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return text.split("\n\n\n")
