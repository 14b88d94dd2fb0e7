"""Ingest and evaluation against the bare forward pass, over the same windows, taking turns.

Run: python -m benchmarks.forward
"""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import torch

from benchmarks.common import chunks, documents, language_model, report, store_of, timed
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.windows import Batch, batches, windows

TOKENS, KS = 10_000, (64, 1024)


def bare(model: LanguageModel, texts: list[Document], run: Any) -> None:
    """Run the windows of documents through a module and throw the result away."""
    stream = (
        window
        for text in texts
        for window in windows(None, model.document_start, model.encode(text.text), model.window)
    )
    for batch in batches(stream, model.window):
        _forward(model, batch, run)


@torch.inference_mode()
def _forward(model: LanguageModel, batch: Batch[None], run: Any) -> None:
    input_ids, mask = model.tensors(batch)
    run(input_ids=input_ids, attention_mask=mask, use_cache=False)


def main() -> None:
    """Print tokens/s relative to the bare forward pass."""
    model = language_model()
    texts = documents(TOKENS, model)
    tokens = sum(len(model.encode(t.text)) for t in texts)
    large = store_of(100_000, model)
    scratch = tempfile.mkdtemp()
    seconds: dict[str, float] = {}

    def add(name: str, spent: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + spent

    store = Datastore.open_or_create(f"faiss:{scratch}/ingest", model.manifest())
    bare(model, texts[:2], model.model)
    for part in chunks(texts, 4):
        add("bare_core", timed(bare, model, part, model.model.base_model))
        add("ingest", timed(ingest, part, model, store))
        add("bare_with_logits", timed(bare, model, part, model.model))
        for k in KS:
            mixture = Mixture(k, 1.5, Fixed(0.25))
            add(f"evaluation_k{k}", timed(evaluate, part, model, large, mixture))
    shutil.rmtree(scratch)
    report(
        "forward",
        {
            "tokens": tokens,
            "store_entries": large.backend.count(),
            "index": large.info()["index"],
            "tokens_per_second": {name: tokens / spent for name, spent in seconds.items()},
            "ingest_over_bare_core": seconds["bare_core"] / seconds["ingest"],
            "evaluation_over_bare": {
                f"k{k}": seconds["bare_with_logits"] / seconds[f"evaluation_k{k}"] for k in KS
            },
        },
    )


if __name__ == "__main__":
    main()
