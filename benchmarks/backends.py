"""Every backend on the same work: writing, copying, ingest, decoding.

Run: python -m benchmarks.backends [faiss] [qdrant] [milvus] [milvus-lite]

A Qdrant or Milvus server is taken from KNNLM_TEST_QDRANT_URL and KNNLM_TEST_MILVUS_URI;
otherwise Qdrant's engine runs embedded, and Milvus is the server that PyPI's `milvus` carries.
All of them share the machine's cores with the model. What is known already goes to stderr.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import torch

from benchmarks.common import chunks, documents, language_model, report, store_of, timed
from benchmarks.forward import bare
from knnlm_store.backend import Indexed
from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Neighbours
from tests.servers import milvus_root, qdrant_root

ENTRIES, INGEST_TOKENS, NEW_TOKENS, ROUNDS, KS = 100_000, 6_000, 48, 5, (32, 128)
SETTLE_SECONDS = 20.0
HELD_OUT_TOKENS = 1_500
PROMPT = "The import statement is executed in two steps:"
BACKENDS = ("faiss", "qdrant", "milvus", "milvus-lite")
SMALL = {"milvus-lite": 10_000}
"""Entries for a backend that is made for small datastores."""


@contextmanager
def places(names: list[str]) -> Iterator[dict[str, str]]:
    """Roots of datastores for the named backends, which end with the block."""
    scratch = Path(tempfile.mkdtemp())
    with ExitStack() as running:
        running.callback(shutil.rmtree, scratch, ignore_errors=True)
        roots = {"faiss": f"faiss:{scratch}/faiss", "milvus-lite": f"milvus:{scratch}/lite.db"}
        if "qdrant" in names:
            roots["qdrant"] = running.enter_context(qdrant_root(scratch / "qdrant"))
        if "milvus" in names:
            roots["milvus"] = running.enter_context(milvus_root())
        yield {name: roots[name] for name in names}


class Clocked(Datastore):
    """Adds up the time that searches take."""

    seconds = 0.0

    def search(self, *args: Any, **options: Any) -> Neighbours:
        """Search, and look at the clock."""
        started = time.perf_counter()
        try:
            return super().search(*args, **options)
        finally:
            self.seconds += time.perf_counter() - started


def filled(root: str, model: LanguageModel, entries: int) -> tuple[Datastore, dict[str, Any]]:
    """Copy so many entries into a new datastore; how fast they were written and indexed."""
    source = store_of(ENTRIES, model)
    figures: dict[str, Any] = {}
    new = Datastore.open_or_create(f"{root}/bench_{uuid4().hex[:6]}", source.manifest)
    if entries >= ENTRIES:
        figures["copy_entries_per_second"] = _copied(source, new)
    scratch = Datastore.open_or_create(f"{root}/bench_{uuid4().hex[:6]}", source.manifest)
    part = first_entries(source, min(entries, 20_480))
    started = time.perf_counter()
    for batch in part:
        scratch.backend.upsert(batch)
    scratch.backend.flush()
    written = sum(map(len, part))
    figures["write_entries_per_second"] = written / (time.perf_counter() - started)
    if entries < ENTRIES:
        return scratch, figures | {"entries": written}
    scratch.backend.drop()
    return new, figures | {"entries": new.backend.count()}


def first_entries(source: Datastore, count: int) -> list[Entries]:
    """Read so many entries, which are there, in the batches that a scan gives: some are short."""
    read: list[Entries] = []
    left = count
    for batch in source.backend.scan(with_keys=True, batch_size=4096):
        read.append(batch[:left])
        left -= len(read[-1])
        if not left:
            break
    return read


def _copied(source: Datastore, new: Datastore) -> float:
    """Entries a second of a copy, without the time that the index takes."""
    index_seconds = 0.0
    if isinstance(new.backend, Indexed):
        build = new.backend.build_index

        def timed_build() -> str | None:
            nonlocal index_seconds
            started = time.perf_counter()
            done = build()
            index_seconds += time.perf_counter() - started
            return done

        new.backend.build_index = timed_build  # type: ignore[method-assign]
    done = copy(source, new)
    return done.entries / (done.seconds - index_seconds)


def ingest_speed(roots: dict[str, str], model: LanguageModel) -> dict[str, float]:
    """Tokens/s into each backend over the bare core forward pass, taking turns."""
    texts = documents(INGEST_TOKENS, model)
    stores = {
        name: Datastore.open_or_create(f"{root}/bench_{uuid4().hex[:6]}", model.manifest())
        for name, root in roots.items()
    }
    seconds = dict.fromkeys([*roots, "bare"], 0.0)
    bare(model, texts[:2], model.model.base_model)
    for part in chunks(texts, 6):
        seconds["bare"] += timed(bare, model, part, model.model.base_model)
        for name, store in stores.items():
            seconds[name] += timed(ingest, part, model, store)
    for store in stores.values():
        store.backend.drop()
        store.close()
    return {name: seconds["bare"] / seconds[name] for name in roots}


def decoding_speed(store: Datastore, lm: KnnLM, ids: torch.Tensor) -> dict[str, dict[str, float]]:
    """Tokens/s over plain `generate()` for each k, and the share of the time in searches.

    Medians over rounds, after a pause: a server goes on to compact what was just written.
    """
    time.sleep(SETTLE_SECONDS)
    clocked = Clocked(store.location, store.backend, store.manifest)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    model = lm.language_model.model

    def generate() -> None:
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    generate()
    plain: list[float] = []
    mixed: dict[int, list[float]] = {k: [] for k in KS}
    searching: dict[int, list[float]] = {k: [] for k in KS}
    for _ in range(ROUNDS):
        lm.off()
        plain.append(timed(generate))
        for k in KS:
            lm.use(clocked, Mixture(k, 1.5, Fixed(0.25)))
            clocked.seconds = 0.0
            mixed[k].append(timed(generate))
            searching[k].append(clocked.seconds)
    return {
        f"k{k}": {
            "over_plain": median(p / m for p, m in zip(plain, mixed[k], strict=True)),
            "search_share": median(s / m for s, m in zip(searching[k], mixed[k], strict=True)),
        }
        for k in KS
    }


def perplexities(store: Datastore, model: LanguageModel) -> dict[str, float]:
    """Perplexity of text that is in no datastore, with each backend's own index."""
    held_out = documents(HELD_OUT_TOKENS, model, skip=len(list(store.documents())))
    result = evaluate(held_out, model, store, Mixture(1024, 1.5, Fixed(0.25))).json()
    return {name: result[name]["perplexity"] for name in ("plain", "mixture")}


def main(names: list[str]) -> None:
    """Print the figures of each backend."""
    model = language_model()
    lm = KnnLM(model)
    ids = torch.tensor([[model.document_start, *model.encode(PROMPT).tolist()]])
    figures: dict[str, dict[str, Any]] = {name: {} for name in names}
    with places(names) as roots:
        for name, ratio in ingest_speed(roots, model).items():
            figures[name]["ingest_over_bare_core"] = ratio
        print(json.dumps(figures), file=sys.stderr, flush=True)
    for name in names:
        figures[name] |= alone(name, lm, ids)
        print(json.dumps({name: figures[name]}), file=sys.stderr, flush=True)
    report("backends", {"backends": figures})


def alone(name: str, lm: KnnLM, ids: torch.Tensor) -> dict[str, Any]:
    """Measure one backend while no other server runs: an idle Milvus takes 0.4 of a core."""
    with places([name]) as roots:
        store, found = filled(roots[name], lm.language_model, SMALL.get(name, ENTRIES))
        try:
            figures = found | {"index": store.info()["index"]}
            figures["decoding"] = decoding_speed(store, lm, ids)
            lm.off()
            return figures | perplexities(store, lm.language_model)
        finally:
            store.backend.drop()
            store.close()


if __name__ == "__main__":
    main(sys.argv[1:] or list(BACKENDS))
