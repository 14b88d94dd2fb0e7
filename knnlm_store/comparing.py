"""What a document that was read is to a datastore: new, changed, or known as it is."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from knnlm_store.corpus import Document
from knnlm_store.documents import DocumentRecord

Step = Literal["add", "change", "change_metadata", "keep"]


def digest_of(document: Document) -> str:
    """Digest of a document's text, by which a change is noticed."""
    return hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def metadata_of(document: Document, known: DocumentRecord | None) -> dict[str, Any]:
    """Metadata that a document is to have.

    A run that says nothing of metadata keeps what earlier ones said: it may be forgotten by.
    """
    return dict(document.metadata) or dict(known.metadata if known else {})


def step_for(document: Document, known: DocumentRecord | None) -> Step:
    """Say what an ingest does with a document; known: what the datastore has of it."""
    if known is None:
        return "add"
    if known.version.digest != digest_of(document):
        return "change"
    same = dict(known.metadata) == metadata_of(document, known)
    return "keep" if same else "change_metadata"
