"""(torch) The key space of a model: fitted once, on text that ships with the program.

One transform a model serves all its datastores: on SmolLM2-135M it costs 0.2 % of perplexity
against one fitted on a datastore's own keys, and in return datastores can be searched together,
and no transform holds statistics of documents that may have to be forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from knnlm_store import transform
from knnlm_store.background import background_text
from knnlm_store.manifest import Manifest
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.transform import RECORD, SAMPLE, Transform
from knnlm_store.values import Float32
from knnlm_store.windows import Window, batches, windows


def transform_of(model: LanguageModel, batch_tokens: int | None = None) -> Transform:
    """Give the model's key transform: from the user's cache folder, or fitted now and kept there.

    Reads ten tokens a dimension, or the whole text (some 24 thousand tokens) if that is less.
    """
    manifest = model.manifest()
    place = _place(manifest)
    if kept := _read(place):
        return kept
    keys = _keys(model, SAMPLE * manifest.dimension, batch_tokens or model.window)
    fitted = transform.fit(keys)
    with contextlib.suppress(OSError):  # a cache that cannot be written saves nothing, that is all
        _keep(place, fitted)
    return fitted


def _place(manifest: Manifest) -> Path:
    """Where it is kept: under what the model makes of a fixed sentence, and the text's digest."""
    digest = hashlib.sha256(manifest.probe.tobytes() + manifest.key.encode())
    for document in background_text():
        digest.update(document.text.encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knnlm-store"
    return cache / "transforms" / f"{digest.hexdigest()[:32]}.npz"


def _read(place: Path) -> Transform | None:
    try:
        return Transform.parse(place.read_bytes())
    except (OSError, ValueError, KeyError):
        return None


def _keep(place: Path, fitted: Transform) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
        file.write(fitted.records()[RECORD])
    os.replace(file.name, place)


def _keys(model: LanguageModel, wanted: int, batch_tokens: int) -> Float32:
    """Hidden states of at most `wanted` tokens, as much of every section, float32 `[n, d]`."""
    documents = [model.encode(document.text) for document in background_text()]
    share = -(-wanted // len(documents))

    def stream() -> Iterator[Window[None]]:
        for tokens in documents:
            yield from windows(None, model.document_start, tokens[:share], model.window)

    parts = []
    for batch in batches(stream(), batch_tokens):
        hidden = model.keys(batch)
        for row, window in enumerate(batch.windows):
            new = slice(window.new - window.begin, window.end - window.begin)
            parts.append(to_numpy(hidden[row, new]))
    return np.concatenate(parts)
