"""What the benchmarks share: the model, real text from the standard library, a store of its keys.

Everything lies under .bench/ and is used again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from demo.smollm2 import folder
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel, load

ROOT = Path(".bench")


def language_model() -> LanguageModel:
    """SmolLM2-135M in float32."""
    return load(str(folder()), dtype="float32")


def documents(tokens: int, model: LanguageModel, skip: int = 0) -> list[Document]:
    """Topics of Python's language reference, cut so that they hold `tokens` tokens in all.

    Texts repeat nothing until all 113 thousand tokens are used up.
    """
    chosen: list[Document] = []
    for name in sorted(topics)[skip:]:
        if tokens <= 0:
            break
        ids = model.encode(topics[name])[:tokens]
        tokens -= len(ids)
        chosen.append(Document("topics", name, model.tokenizer.decode(ids), {}, 0))
    return chosen


def store_of(tokens: int, model: LanguageModel, storage: str = "float16") -> Datastore:
    """A FAISS datastore of about that many real keys, built on first use."""
    where = f"faiss:{ROOT}/stores/topics-{tokens}-{storage}"
    store = Datastore.open_or_create(where, model.manifest(), storage)
    ingest(documents(tokens, model), model, store)
    return store


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def chunks(items: list[Document], size: int) -> Iterator[list[Document]]:
    """Cut a list, so that what is compared can take turns on a machine whose speed drifts."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def report(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Print one JSON object: the figures and what they were measured on."""
    result = {
        "benchmark": name,
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        **figures,
    }
    print(json.dumps(result, indent=2))
    return result
