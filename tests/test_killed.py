"""Killed at any instant and run again, an ingest ends as if it had not been killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import intents, writer, writers
from knnlm_store.calibration import keep_temperature
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Int64, Location
from tests.ingest_support import (
    assert_same,
    assert_whole,
    corpus,
    dead_writer,
    held,
    new_store,
    prose,
    store_of,
)

BEFORE = {"a": prose(1, 40), "b": prose(2, 12), "c": "kept as it is", "gone": prose(5, 9)}
AFTER = {"a": prose(11, 37), "b": prose(12, 20), "c": BEFORE["c"], "d": prose(14, 18), "e": "new"}


class KilledError(BaseException):
    """What stands for the end of the process: nothing of ours may catch it and go on."""


class Mortal(MemoryBackend):
    """Dies at the n-th change; everything it is asked later, reading too, dies as well."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.place = location
        self.left: int | None = None
        self.torn = False
        self.history: list[str] = []

    def twin(self) -> Mortal:
        """Another with the same contents."""
        made = Mortal(self.place)
        made.create(self.spec(), dict(self.scan_records("")))
        for entries in self.scan(with_keys=True):
            made.upsert(entries)
        return made

    def _dies(self, what: str) -> bool:
        """Whether this change is the fatal one; raise if the end came before."""
        if self.left is None:
            return False
        if self.left <= 0:
            raise KilledError
        self.left -= 1
        self.history.append(what)
        return self.left == 0

    def upsert(self, entries: Entries) -> None:
        dies = self._dies("upsert")
        super().upsert(entries if not dies else entries[: len(entries) // 2 * self.torn])
        self._end(dies)

    def delete(self, documents: Sequence[int] | Int64) -> None:
        dies = self._dies("delete")
        super().delete(documents if not dies else documents[: len(documents) * self.torn])
        self._end(dies)

    def flush(self) -> None:
        self._end(self._dies("flush"))

    def put_records(self, records: Mapping[str, bytes]) -> None:
        settles = self.history[-2:] == ["delete", "flush"]
        document = "settle" if settles else "commit"
        dies = self._dies("claim" if min(records).startswith("intent/") else document)
        some = list(records.items())[: max(1, len(records) // 2) * self.torn]
        super().put_records(dict(some) if dies else records)
        self._end(dies)

    def delete_records(self, names: Sequence[str]) -> None:
        dies = self._dies("release" if min(names).startswith("intent/") else "forget")
        super().delete_records(names[: len(names) * self.torn] if dies else names)
        self._end(dies)

    def _end(self, dies: bool) -> None:
        if dies:
            raise KilledError


def survivor(lm: LanguageModel) -> tuple[Datastore, Mortal]:
    backend = Mortal.connect(Location("memory", "", "memory"))
    store = store_of(backend, lm)
    ingest(corpus(BEFORE), lm, store, batch_tokens=64)
    keep_temperature(store)  # which must not outlive a change
    return store, backend


@pytest.fixture
def expected(language_model: LanguageModel) -> Datastore:
    """An uninterrupted run of both corpora, elsewhere and in other batches."""
    store = new_store(language_model)
    ingest(corpus(BEFORE), language_model, store)
    ingest(corpus(AFTER), language_model, store)
    return store


@pytest.mark.parametrize("torn", [False, True], ids=["before", "halfway"])
@pytest.mark.parametrize("together", [0.0, 60.0], ids=["commits_each", "commits_in_groups"])
def test_killed_at_each_change(
    language_model: LanguageModel,
    expected: Datastore,
    monkeypatch: pytest.MonkeyPatch,
    torn: bool,
    together: float,
) -> None:
    """Before the n-th change to the datastore or halfway through it, for every n."""
    monkeypatch.setattr(writer, "_GROUP_SECONDS", together)
    monkeypatch.setattr(writer, "_BATCH", 1)
    process, _, _ = dead_writer().rpartition(":")
    last: Counter[str] = Counter()
    for n in range(1, 200):
        store, backend = survivor(language_model)
        backend.left, backend.torn = n, torn
        with monkeypatch.context() as in_another_process:
            in_another_process.setattr(writers, "_me", lambda: process)
            try:
                ingest(corpus(AFTER), language_model, store, batch_tokens=64)
            except KilledError:
                last[backend.history[-1]] += 1
            else:
                break
        backend.left = None
        ingest(corpus(AFTER), language_model, store)
        assert_whole(store)
        assert_same(store, expected)
    else:
        pytest.fail("the run never ended")
    assert n > 12
    each = {"claim", "upsert", "flush", "commit", "delete", "settle", "release", "forget"}
    assert set(last) == each


def kill_at(change: str, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Mortal:
    """A datastore whose second ingest died halfway through its second change of a kind."""
    monkeypatch.setattr(writer, "_GROUP_SECONDS", 0.0)
    monkeypatch.setattr(writer, "_BATCH", 1)
    store, rehearsal = survivor(lm)
    rehearsal.left = 10_000
    ingest(corpus(AFTER), lm, store)
    first = rehearsal.history.index(change)
    store, backend = survivor(lm)
    backend.left, backend.torn = rehearsal.history.index(change, first + 1) + 1, True
    with pytest.raises(KilledError):
        ingest(corpus(AFTER), lm, store)
    assert backend.history[-1] == change
    backend.left = None
    return backend


@pytest.mark.parametrize("change", ["upsert", "commit", "release"])
def test_killed_while_mending(
    language_model: LanguageModel,
    expected: Datastore,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """A second kill at each change of the next run, whatever it is about."""
    first = kill_at(change, language_model, monkeypatch)
    for n in range(1, 200):
        backend = first.twin()
        store = Datastore(backend.place, backend, language_model.manifest())
        backend.left = n
        try:
            report = ingest(corpus(AFTER), language_model, store)
        except KilledError:
            backend.left = None
            ingest(corpus(AFTER), language_model, store)
            assert_whole(store)
            assert_same(store, expected)
        else:
            assert report.mended
            break
    assert n > 8


def test_documents_that_went_away_meanwhile(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the killed run had in hand is undone, even if nobody names it again."""
    backend = kill_at("upsert", language_model, monkeypatch)
    store = Datastore(backend.place, backend, language_model.manifest())
    in_force = {document.version.number for document in store.documents()}
    entries = held(store)
    assert list(intents.scan(backend))
    assert not np.isin(entries.documents, list(in_force)).all()
    assert ingest([], language_model, store).mended
    assert_whole(store)
    before = entries[np.isin(entries.documents, list(in_force))]
    assert held(store).ids.tolist() == before.ids.tolist()


def test_killed_by_the_system(saved_model: Path, tmp_path: Path) -> None:
    """SIGKILL at 20 moments spread over the run, every second one killed again when rerun."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.killing", saved_model, tmp_path],
        cwd=Path(__file__).parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    kills = [json.loads(line) for line in printed.splitlines()]
    assert len(kills) >= 20
    with Datastore.open(f"faiss:{tmp_path}/whole") as expected:
        assert_whole(expected)
        for i in range(20):
            with Datastore.open(f"faiss:{tmp_path}/killed{i}") as store:
                assert_whole(store)
                assert_same(store, expected)
    assert sum(kill["intents"] > 0 for kill in kills) >= 5
    assert sum(0 < kill["committed"] < kill["changed"] for kill in kills) >= 5
