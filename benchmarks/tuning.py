"""What `tune` reaches on real text, at home and where the datastore is the wrong one.

Documents up to some 64 thousand tokens of TRAIN go into a datastore (int8 keys, the model's
transform, exact or IVF as FAISS chooses); `tune` fits on VALID; TEST and each FOREIGN text are only
scored. Run: python -m benchmarks.tuning TRAIN VALID TEST [FOREIGN ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from benchmarks.common import language_model, report
from knnlm_store.calibrated import Calibration
from knnlm_store.corpus import Corpus, Document
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.keyspace import transform_of
from knnlm_store.models import LanguageModel
from knnlm_store.tuning.cache import Reading, cached
from knnlm_store.tuning.figures import summary
from knnlm_store.tuning.tune import tune

TOKENS, FOREIGN_TOKENS = 63_710, 8_000


def first(corpus: Iterable[Any], tokens: int, model: LanguageModel) -> list[Document]:
    """Take whole documents until they reach so many tokens."""
    taken: list[Document] = []
    for item in corpus:
        if tokens <= 0:
            break
        if isinstance(item, Document):
            taken.append(item)
            tokens -= len(model.encode(item.text))
    return taken


def foreign(
    where: str, model: LanguageModel, store: Datastore, calibration: Calibration
) -> dict[str, Any]:
    """Score text of another domain under every policy that was fitted."""
    most = max(mixture.k for mixture in calibration.mixtures.values())
    sample = cached(Corpus([where]), model, store, most, Reading(), most=FOREIGN_TOKENS)
    return {"plain": summary(sample.log_lm, sample.log_lm)} | {
        name: summary(sample.log_p(mixture), sample.log_lm)
        for name, mixture in calibration.mixtures.items()
    }


def main(train: str, valid: str, test: str, *others: str) -> None:
    """Print what each policy does to each text."""
    model = language_model()
    with tempfile.TemporaryDirectory() as scratch:
        manifest = model.manifest().mapping(transform_of(model))
        store = Datastore.open_or_create(f"faiss:{scratch}/tuned", manifest, "int8")
        ingest(first(Corpus([train]), TOKENS, model), model, store)
        started = time.monotonic()
        tuned = tune(Corpus([valid]), model, store, test=Corpus([test]))
        seconds = time.monotonic() - started
        calibration = Calibration.read(store)
        wrong = {
            where: foreign(where, model, store, calibration) for where in others if calibration
        }
        figures = tuned.json() | {"index": store.info()["index"], "entries": store.backend.count()}
    report("tuning", figures | {"foreign": wrong, "tune_seconds": seconds})


if __name__ == "__main__":
    main(*islice(sys.argv, 1, None))
