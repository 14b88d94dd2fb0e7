"""Perplexity on law-cfpb under the protocol that the project's gold figures were made with.

Documents in the order of their file numbers up to 63,710 tokens go into an exact datastore; its
test split is scored with k 1024, lambda 0.15, T 1.293. Run: python -m benchmarks.gold FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import language_model, report
from knnlm_store.corpus import Corpus, Document
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture

TOKENS = 63_710
GOLD = {"plain": 9.753, "mixture": 9.019}


def main(folder: Path) -> None:
    """Build the store, score the test split, print both perplexities beside the gold ones."""
    model = language_model()
    train: list[Document] = []
    tokens = 0
    for item in Corpus([str(folder / "train")]):
        if isinstance(item, Document) and tokens < TOKENS:
            train.append(item)
            tokens += len(model.encode(item.text))
    with tempfile.TemporaryDirectory() as scratch:
        store = Datastore.open_or_create(f"faiss:{scratch}/gold", model.manifest())
        built = ingest(train, model, store)
        mixture = Mixture(1024, 1.293, Fixed(0.15))
        scored = evaluate(Corpus([str(folder / "test")]), model, store, mixture).json()
        index = store.info()["index"]
    figures = {
        name: {
            "perplexity": scored[name]["perplexity"],
            "gold": gold,
            "difference_percent": 100 * (scored[name]["perplexity"] / gold - 1),
        }
        for name, gold in GOLD.items()
    }
    report(
        "gold",
        {"entries": built.tokens, "scored_tokens": scored["tokens"], "index": index, **figures},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
