"""`generate()` with a datastore of 100 thousand real keys against plain `generate()`.

Run: python -m benchmarks.generation
"""

from __future__ import annotations

import torch

from benchmarks.common import language_model, report, store_of, timed
from knnlm_store.generation import KnnLM
from knnlm_store.mixture import Fixed, Mixture

PROMPT = "The import statement is executed in two steps:"
NEW_TOKENS, ROUNDS, KS = 48, 3, (32, 128, 1024)


def main() -> None:
    """Print tokens/s relative to plain generation, for each k, and the share of the search."""
    model = language_model()
    store = store_of(100_000, model)
    lm = KnnLM(model)
    ids = torch.tensor([[model.document_start, *model.encode(PROMPT).tolist()]])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    def generate() -> None:
        model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    generate()
    seconds: dict[str, float] = {}
    for _ in range(ROUNDS):
        lm.off()
        seconds["plain"] = seconds.get("plain", 0.0) + timed(generate)
        for k in KS:
            lm.use(store, Mixture(k, 1.5, Fixed(0.25)))
            seconds[f"k{k}"] = seconds.get(f"k{k}", 0.0) + timed(generate)
    tokens = NEW_TOKENS * ROUNDS
    report(
        "generation",
        {
            "store_entries": store.backend.count(),
            "index": store.info()["index"],
            "tokens_per_second": {name: tokens / spent for name, spent in seconds.items()},
            "over_plain": {f"k{k}": seconds["plain"] / seconds[f"k{k}"] for k in KS},
        },
    )


if __name__ == "__main__":
    main()
