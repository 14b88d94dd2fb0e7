"""Faults for a long time.

Run: python -m benchmarks.soak [MINUTES] [qdrant] [milvus]

A server that is killed now and then stands behind a proxy that cuts, delays and garbles what it
replies, at random. Documents are ingested and replaced, entries searched, texts decoded; all that
comes back is compared with what brute force in memory gives. Prints counts, and ends with exit
code 1 where an answer was wrong, an error not ours, or the datastore not whole in the end.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import report
from knnlm_store import ingest as ingesting
from knnlm_store import registry
from knnlm_store.backend import VectorBackend
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.errors import KnnlmError
from knnlm_store.generation import KnnLM
from knnlm_store.models import LanguageModel
from knnlm_store.writer import DocumentWriter
from tests.faults_servers import EngineProcess, Killable, another_milvus, running
from tests.faults_support import (
    MIXTURE,
    assert_as,
    hasty,
    ingested,
    logits_of,
    made_exact,
    prompt,
    read,
)
from tests.ingest_support import corpus, held, new_store, prose
from tests.milvus_server import TOKEN
from tests.proxies import FAULTS, Moods, grpc_proxy, http_proxy, passing
from tests.tiny import tiny_model, tiny_tokenizer

KEY, MOST_DOCUMENTS, READS, DECODINGS, ATTEMPTS = "soak", 40, 20, 4, 5


@dataclass
class Counts:
    """What was done and what came of it."""

    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    escaped: Counter[str] = field(default_factory=Counter)
    wrong_answers: int = 0
    kills: int = 0
    retries: int = 0

    def attempt(self, name: str, work: Callable[[], object]) -> bool:
        """Do something that may end with an error of ours; whether it did not."""
        self.operations[name] += 1
        try:
            work()
        except KnnlmError as error:
            self.errors[f"{name}: {type(error).__name__}"] += 1
            return False
        except AssertionError:
            self.wrong_answers += 1
            traceback.print_exc()
            return False
        except Exception as error:  # noqa: BLE001  what the soak is there to find
            self.escaped[f"{name}: {type(error).__name__}"] += 1
            traceback.print_exc()
            return False
        return True


@dataclass
class Place:
    """A server with a proxy before it. kills: share of works in which it is killed."""

    server: Killable
    proxy: Moods
    uri: str
    kills: float
    most_kills: int
    rate: float

    @property
    def proxied(self) -> str:
        """The datastore by way of the proxy."""
        return str(replace(registry.parse(self.uri), root=self.proxy.address))


class Soak:
    """One datastore under faults, and the same one in memory without any."""

    def __init__(self, place: Place, seed: int) -> None:
        self._place, self._chance = place, random.Random(seed)
        self._lm = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), window=32)
        self._knn = KnnLM(self._lm)
        self._texts: dict[str, str] = {}
        self._quiet = new_store(self._lm)
        self._lock = threading.Lock()
        self.counts = Counts()

    def run(self, seconds: float) -> dict[str, Any]:
        """Go on for so many seconds; gives the figures."""
        began = time.monotonic()
        surely(partial(made_exact, self._lm, self._place.uri))
        while time.monotonic() - began < seconds:
            self._ingest()
            self._read()
            self._decode()
        wrong = self.counts.wrong_answers
        surely(self._compare)
        counters = self._knn.counters
        return {
            **vars(self.counts),
            "whole": self.counts.wrong_answers == wrong,
            "replies": dict(self._place.proxy.done),
            "steps": counters.steps,
            "fallbacks": counters.fallbacks,
            "documents": len(self._texts),
            "entries": len(held(self._quiet)),
            "seconds": round(time.monotonic() - began),
        }

    def _ingest(self) -> None:
        """Change documents under faults, then without, and see that all is there."""
        for _ in range(self._chance.randint(1, 4)):
            name = f"{self._chance.randrange(MOST_DOCUMENTS)}"
            self._texts[name] = prose(self._chance.randrange(10**6), self._chance.randint(5, 120))
        work = partial(ingested, self._lm, self._place.proxied, dict(self._texts))
        for _ in range(ATTEMPTS):
            with self._faults():
                if self.counts.attempt("ingest", work):
                    break
        surely(partial(ingested, self._lm, self._place.uri, self._texts))
        ingesting.ingest(corpus(self._texts), self._lm, self._quiet)
        surely(self._compare)

    def _compare(self) -> None:
        """See that the datastore is whole; with nothing to spoil it, only a restart may err."""
        compare = partial(assert_as, self._place.uri, self._quiet)
        self.counts.operations["compare"] += 1
        try:
            compare()
        except AssertionError:
            self.counts.wrong_answers += 1
            traceback.print_exc()

    def _read(self) -> None:
        entries = held(self._quiet)
        with self._opened() as store, self._faults(within=0.2):
            for _ in range(READS):
                self.counts.attempt("read", partial(read, store, entries, self._chance))

    def _decode(self) -> None:
        """Each step must be the plain model's, bit for bit, or the mixture's."""
        knn = self._knn
        tokens = prompt(knn)
        plain = logits_of(knn.off(), tokens)
        mixed = logits_of(knn.use(self._quiet, MIXTURE), tokens)

        def decode() -> None:
            for found, without, with_store in zip(
                logits_of(knn, tokens), plain, mixed, strict=True
            ):
                if not torch.equal(found, without):
                    np.testing.assert_allclose(found.numpy(), with_store.numpy(), atol=1e-2)

        with self._opened() as store:
            surely(lambda: knn.use(store, MIXTURE, timeout=0.5))
            with self._faults(within=0.2):
                for _ in range(DECODINGS):
                    self.counts.attempt("decode", decode)
        knn.off()

    @contextmanager
    def _opened(self) -> Iterator[Datastore]:
        """Open the datastore by way of the proxy, which still lets everything through."""
        stores: list[Datastore] = []
        surely(lambda: stores.append(Datastore.open(self._place.proxied)))
        with stores[0] as store:
            yield store

    @contextmanager
    def _faults(self, within: float = 1.0) -> Iterator[None]:
        """Spoil replies, and at times kill the server; all is well after the block.

        within: seconds after which it is killed at the latest.
        """
        place = self._place
        faults = self._chance.choice([FAULTS, FAULTS, ("cut", "refuse", "late"), ("hang",)])
        seed = random.Random(self._chance.random())

        def mood(_: str) -> str:
            with self._lock:
                return seed.choice(faults) if seed.random() < place.rate else "pass"

        killer = None
        if self._chance.random() < place.kills and self.counts.kills < place.most_kills:
            self.counts.kills += 1
            killer = threading.Thread(target=self._outage, args=(within * self._chance.random(),))
            killer.start()
        place.proxy.mood = mood
        try:
            yield
        finally:
            place.proxy.mood = passing
            if killer is not None:
                killer.join()

    def _outage(self, after: float) -> None:
        time.sleep(after)
        self._place.server.kill()
        time.sleep(0.5)
        self._place.server.start()

    def writer(self, backend: VectorBackend, catalog: Catalog) -> DocumentWriter:
        """A writer that counts what it repeats."""
        made = DocumentWriter(backend, catalog)
        made._retry.before_sleep = self._retried
        return made

    def _retried(self, _: object) -> None:
        self.counts.retries += 1


def surely(work: Callable[[], object]) -> None:
    """Do what must not fail, though a server that has just come back may need a while."""
    until = time.monotonic() + 120
    while True:
        try:
            work()
        except KnnlmError as error:
            if not error.retryable or time.monotonic() > until:
                raise
            time.sleep(1)
        else:
            return


@contextmanager
def qdrant() -> Iterator[Place]:
    """Qdrant's engine in a process of its own."""
    os.environ |= {"KNNLM_QDRANT_API_KEY": KEY, "KNNLM_QDRANT_TIMEOUT": "1"}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ends:
        server = ends.enter_context(running(EngineProcess(Path(folder) / "engine", KEY)))
        proxy = ends.enter_context(http_proxy(server.address))
        yield Place(server, proxy, f"qdrant://{server.address}/soak", 0.15, 10**6, 0.03)


@contextmanager
def milvus() -> Iterator[Place]:
    """A Milvus server, whose restarts take long."""
    os.environ |= {"KNNLM_MILVUS_TOKEN": TOKEN, "KNNLM_MILVUS_TIMEOUT": "3"}
    with another_milvus() as server, grpc_proxy(server.root) as proxy:
        yield Place(server, proxy, f"milvus://{server.root}/soak", 0.03, 3, 0.02)


def main(minutes: float, names: list[str]) -> int:
    """Print the figures of each server, which share the time."""
    places = {"qdrant": qdrant, "milvus": milvus}
    seed = random.SystemRandom().randrange(10**6)
    figures: dict[str, Any] = {"seed": seed}
    with pytest.MonkeyPatch.context() as patcher:
        hasty(patcher)
        for name in names or list(places):
            with places[name]() as place:
                soak = Soak(place, seed)
                patcher.setattr(ingesting, "DocumentWriter", soak.writer)
                figures[name] = soak.run(60 * minutes / len(names or places))
    report("soak", figures)
    parts = [value for value in figures.values() if isinstance(value, dict)]
    return int(any(not p["whole"] or p["escaped"] or p["wrong_answers"] for p in parts))


if __name__ == "__main__":
    given = sys.argv[1:]
    minutes = float(given.pop(0)) if given and given[0][0].isdigit() else 10.0
    sys.exit(main(minutes, given))
