"""What it costs to change a datastore of 500 documents, to trace tokens, to write a bundle.

Run: python -m benchmarks.living

500 texts of some 60 tokens from Python's language reference, SmolLM2-135M, FAISS in a folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.common import documents, language_model, report, store_of, timed
from knnlm_store.bundle import export_bundle, import_bundle
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.forgetting import forget
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel

DOCUMENTS, TOKENS, ENTRIES = 500, 60, 100_000
PROMPT = "The import statement is executed in two steps:"
NEW_TOKENS, ROUNDS = 48, 3


def main() -> None:
    """Print seconds and ratios."""
    model = language_model()
    with tempfile.TemporaryDirectory() as folder:
        report("living", changing(model, folder) | bundles(model, Path(folder)) | tracing(model))


def pieces(model: LanguageModel) -> list[Document]:
    """500 documents of 60 tokens each."""
    ids = np.concatenate([model.encode(d.text) for d in documents(DOCUMENTS * TOKENS, model)])
    cut = (ids[i * TOKENS : (i + 1) * TOKENS] for i in range(DOCUMENTS))
    return [
        Document("pieces", f"{i:03}", model.tokenizer.decode(part), {}, 0)
        for i, part in enumerate(cut)
    ]


def changing(model: LanguageModel, folder: str) -> dict[str, float]:
    """Sync, replace and forget, beside a full ingest."""
    texts = pieces(model)
    passes = counted(model)
    with Datastore.open_or_create(f"faiss:{folder}/stores/living", model.manifest()) as store:
        full = timed(ingest, texts, model, store)
        before = passes()
        unchanged = median(timed(ingest, texts, model, store) for _ in range(ROUNDS))
        assert passes() == before
        replaced = []
        for turn in range(ROUNDS):
            texts[turn] = replace(texts[turn], text=texts[turn].text + " And so on.")
            replaced.append(timed(ingest, texts, model, store))
        forgotten = [timed(forget, store, [texts[turn].id]) for turn in range(ROUNDS)]
        proved = timed(lambda: forget(store, [texts[ROUNDS].id], verify=True))
    return {
        "full_ingest_seconds": full,
        "sync_of_unchanged_seconds": unchanged,
        "sync_of_unchanged_forward_passes": 0,
        "replace_one_over_full": median(replaced) / full,
        "forget_one_seconds": median(forgotten),
        "forget_one_with_proof_seconds": proved,
    }


def counted(model: LanguageModel) -> Callable[[], int]:
    """Count the forward passes for keys from now on."""
    calls, keys = [0], model.keys

    def counting(*arguments: object) -> object:
        calls[0] += 1
        return keys(*arguments)  # type: ignore[arg-type]

    model.keys = counting  # type: ignore[method-assign,assignment]
    return lambda: calls[0]


def bundles(model: LanguageModel, folder: Path) -> dict[str, float]:
    """Entries a second out of a datastore and into one, all checks included."""
    source = store_of(ENTRIES, model)
    entries = source.backend.count()
    out = timed(export_bundle, source, folder / "bundle")
    into = timed(import_bundle, folder / "bundle", f"faiss:{folder}/stores/imported")
    size = sum(path.stat().st_size for path in (folder / "bundle").iterdir())
    shutil.rmtree(folder / "bundle")
    return {
        "export_entries_per_second": entries / out,
        "import_entries_per_second": entries / into,
        "bundle_bytes_per_entry": size / entries,
    }


def tracing(model: LanguageModel) -> dict[str, float]:
    """Time of an explanation of generated text over that of generating it plainly."""
    import torch

    store = store_of(ENTRIES, model)
    lm = KnnLM(model)
    ids = torch.tensor([[model.document_start, *model.encode(PROMPT).tolist()]])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    made: list[list[int]] = []

    def generate() -> None:
        made[:] = model.model.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()

    def explain() -> None:
        lm.explain(made[0], start=ids.shape[1])

    seconds: dict[str, list[float]] = {"plain": [], "mixed": [], "explain": []}
    generate()
    for _ in range(ROUNDS):
        lm.off()
        seconds["plain"].append(timed(generate))
        lm.use(store, Mixture(128, 1.5, Fixed(0.25)))
        seconds["mixed"].append(timed(generate))
        seconds["explain"].append(timed(explain))
    plain = median(seconds["plain"])
    return {
        "explain_over_plain_generate": median(seconds["explain"]) / plain,
        "generate_and_explain_over_plain_generate": (
            median(seconds["mixed"]) + median(seconds["explain"])
        )
        / plain,
    }


if __name__ == "__main__":
    main()
