"""Exact datastores in memory made of cached states, and what they find for other states.

The real Datastore, Pool, search and estimate of the temperature; only the forward pass is not
repeated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from benchmarks.states import FFN, States, model
from knnlm_store.datastore import Datastore
from knnlm_store.documents import PREFIX, DocumentRecord, Version
from knnlm_store.interpolation import Float64
from knnlm_store.keyspace import transform_of
from knnlm_store.manifest import Manifest
from knnlm_store.mixture import Evidence
from knnlm_store.models import LanguageModel
from knnlm_store.several import Searchable
from knnlm_store.transform import Transform
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Entries, Float32, Spec
from knnlm_store_faiss.datafiles import Codec

_QUERIES = 1024  # searched at once


@cache
def _manifest() -> Manifest:
    return model().manifest()


@cache
def model_transform(point: str = FFN) -> Transform:
    """Give the model's own transform at a key point, as an ingest would take it."""
    lm = model()
    return transform_of(LanguageModel.wrap(lm.model, lm.tokenizer, key=point))


def store_of(
    text: States, key_map: Transform | None, point: str = FFN, storage: str = "int8"
) -> Datastore:
    """Make a datastore of a text's states, with keys rounded as FAISS' storage rounds them."""
    store = Datastore.open_or_create("memory:", replace(_manifest(), key=point).mapping(key_map))
    keys = store.keys(text.at(point))
    codec = Codec(Spec(keys.shape[1], storage))
    starts = np.searchsorted(text.documents, text.documents)
    store.backend.upsert(
        Entries(
            codec.decode(codec.encode(keys)),
            text.targets,
            starts + text.documents + 1,
            np.arange(len(text)) - starts,
        )
    )
    numbers, first, counts = np.unique(text.documents, return_index=True, return_counts=True)
    store.backend.put_records(
        {
            f"{PREFIX}{number}": DocumentRecord(
                "states", text.names[number], {}, Version(start + number + 1, count, "", 0, 0, 0.0)
            ).encode()
            for number, start, count in zip(
                numbers.tolist(), first.tolist(), counts.tolist(), strict=True
            )
        }
    )
    return store


def sample_of(store: Searchable, text: States, k: int = 1024, point: str = FFN) -> Sample:
    """Do as `tuning.cached` does: find k neighbours of each token."""
    parts = [
        _found(store, text[start : start + _QUERIES], k, point)
        for start in range(0, len(text), _QUERIES)
    ]
    columns = ("distances", "tokens", "log_lm", "entropy", "top", "queries")
    evidence = (np.concatenate([getattr(part, name) for part in parts]) for name in columns)
    names = tuple(text.names.tolist())
    return Sample(text.log_lm, text.targets, text.documents, Evidence(*evidence), names)


def _found(store: Searchable, text: States, k: int, point: str) -> Evidence:
    found = store.search(text.at(point), k)
    log_lm = log_probs(text, np.maximum(found.tokens, 0))
    log_lm[found.tokens < 0] = -np.inf
    evidence = Evidence.of(found, log_lm, text.entropy, text.top)
    return replace(
        evidence,
        tokens=evidence.tokens.astype(np.int32),
        log_lm=evidence.log_lm.astype(np.float32),
    )


def log_probs(text: States, tokens: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> Float64:
    """Log p_LM of any tokens, int64 `[n, k]`, from the output embedding's input."""
    logits = torch.from_numpy(text.lm_head_input) @ _embedding()
    picked: Float32 = logits.gather(1, torch.from_numpy(tokens)).numpy()
    return picked.astype(np.float64) - text.totals[:, None]


@cache
def _embedding() -> torch.Tensor:
    weight: torch.Tensor = model().model.get_output_embeddings().weight
    return weight.detach().T
