"""What looks like a slip of the pen is told before a model is loaded, and no error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knnlm_store.cli import output

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus


def tell(corpus: Corpus) -> None:
    """Say which metadata columns may be nowhere."""
    if corpus.doubt:
        output.say(f"warning: {corpus.doubt}")
