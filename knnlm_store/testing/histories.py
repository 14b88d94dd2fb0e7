"""Random histories against a plain model, and readers beside a writer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event, Semaphore

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, Scratch, write
from knnlm_store.testing.truth import FAR, batch, clustered
from knnlm_store.values import DocumentFilter, Entries

DOCUMENTS = [FAR + 64 * i for i in range(5)]


class Model:
    """What a datastore must hold: a dict from id to entry."""

    def __init__(self) -> None:
        self.entries: dict[int, Entries] = {}

    def upsert(self, entries: Entries) -> None:
        """Put each entry under its id."""
        for row, id_ in enumerate(entries.ids.tolist()):
            self.entries[id_] = entries[row : row + 1]

    def delete(self, document: int) -> None:
        """Forget the entries of a document."""
        kept = self.entries.items()
        self.entries = {i: e for i, e in kept if e.documents[0] != document}

    def all(self) -> Entries:
        """Join what is left."""
        nothing = batch(0, clustered(0, seed=0))
        return Entries.concatenate([nothing, *self.entries.values()])


class Histories(Base):
    """Tests of many writes in a row, and of writes and searches at once."""

    @pytest.mark.parametrize("seed", range(4))
    def test_random_history(self, scratch: Scratch, seed: int) -> None:
        """After any upserts, replacements, deletions and reopenings, searches are right."""
        random, model = np.random.default_rng(seed), Model()
        for step in range(12):
            self._one_step(scratch, model, random)
            store, expected = scratch.backend, model.all()
            queries = clustered(3, seed=1000 * seed + step)
            assert store.count() == len(expected)
            self.check(store, expected, queries, k=8)
            within = DocumentFilter.leaving_out(random.choice(DOCUMENTS, 2))
            self.check(store, expected, queries, k=8, within=within)
        ids = [id_ for part in scratch.backend.scan(batch_size=16) for id_ in part.ids.tolist()]
        assert sorted(ids) == sorted(model.entries)

    def _one_step(self, scratch: Scratch, model: Model, random: np.random.Generator) -> None:
        """Do one random thing to the datastore and to its model."""
        document = int(random.choice(DOCUMENTS))
        match random.choice(["upsert", "upsert", "upsert", "delete", "reopen"]):
            case "upsert":
                n, first = int(random.integers(1, 30)), int(random.integers(0, 30))
                keys = clustered(n, seed=int(random.integers(1000)))
                entries = batch(document, keys, random.integers(0, 2**32, n), first)
                scratch.backend.upsert(entries)
                model.upsert(entries)
            case "delete":
                scratch.backend.delete([document])
                model.delete(document)
            case _:
                scratch.backend.flush()
                scratch.reopen()
        scratch.backend.flush()

    def test_searches_beside_a_writer(self, store: VectorBackend) -> None:
        """No error, and every neighbour is a pair that was written, whatever else is there."""
        parts = [batch(FAR + 1000 * i, clustered(40, seed=i)) for i in range(12)]
        ever, queries = Entries.concatenate(parts), clustered(4, seed=99)
        searched, done = Semaphore(0), Event()

        def keep_searching() -> None:
            try:
                while not done.is_set():
                    found = store.search(queries, 6, with_keys=True)
                    self.compare(store, found, ever, queries, 6, recall=0)
                    dict(store.scan_records(""))
                    searched.release()
            finally:
                searched.release(len(parts))  # a reader that failed must not hold up the writer

        write(store, parts[0])
        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(keep_searching) for _ in range(2)]
            try:
                for old, new in pairwise(parts):
                    searched.acquire()  # so that the readers are at it, however fast writing is
                    write(store, new)
                    store.put_records({str(new.documents[0]): b"new"})
                    store.delete([old.documents[0]])
            finally:
                done.set()
            for reader in readers:
                reader.result()
        store.flush()
        assert store.count() == len(parts[-1])
        self.check(store, parts[-1], queries, k=20)

    def test_writers_at_once(self, store: VectorBackend) -> None:
        """Threads that write different documents lose nothing of each other's."""
        parts = [batch(FAR + 1000 * i, clustered(25, seed=i)) for i in range(8)]

        def upsert_and_note(part: Entries) -> None:
            for rows in np.array_split(np.arange(25), 5):
                store.upsert(part[rows])
            store.put_records({str(part.documents[0]): b"done"})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(upsert_and_note, parts))
        store.flush()
        assert store.count() == 200
        assert len(list(store.scan_records(""))) == 8
        self.check(store, Entries.concatenate(parts), clustered(4, seed=99), k=20)
