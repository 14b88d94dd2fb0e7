"""What an ingest does to a datastore: new, changed, unchanged, failed, empty, interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import intents, writers
from knnlm_store.catalog import Catalog
from knnlm_store.comparing import digest_of
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import IngestReport, ingest
from knnlm_store.models import LanguageModel
from tests.ingest_support import (
    an_intent,
    assert_same,
    assert_whole,
    bare,
    corpus,
    counted,
    document,
    held,
    new_store,
    prose,
    tokens_of,
)

TEXTS = {"a": prose(1, 70), "b/b": prose(2, 9), "ä \n'%_": prose(3, 33), "d": prose(4, 1)}


def test_new_documents(language_model: LanguageModel, memory_store: Datastore) -> None:
    seen: list[int] = []
    report = ingest(
        corpus(TEXTS),
        language_model,
        memory_store,
        progress=lambda so_far: seen.append(so_far.tokens),
    )
    total = sum(map(len, TEXTS.values()))
    assert (report.added, report.replaced, report.skipped, report.failed) == (4, 0, 0, 0)
    assert report.tokens == seen[-1] == report.bytes_read == total
    assert_whole(memory_store)


@pytest.fixture
def filled(language_model: LanguageModel, memory_store: Datastore) -> Datastore:
    ingest(corpus(TEXTS), language_model, memory_store)
    return memory_store


def test_each_token_follows_its_context(language_model: LanguageModel, filled: Datastore) -> None:
    """Entries of a document are its tokens in order; id + 1 is the next one of the same version."""
    entries = held(filled)
    for record, name in zip(filled.documents(), sorted(TEXTS), strict=True):
        mine = entries[entries.documents == record.version.number]
        assert [mine.tokens.tolist()] == tokens_of(language_model, [TEXTS[name]])
        np.testing.assert_array_equal(np.diff(mine.ids), 1)
        np.testing.assert_array_equal(mine.positions, np.arange(len(mine)))
        outside = {int(mine.ids[0]) - 1, int(mine.ids[-1]) + 1}
        assert not outside & set(entries.ids.tolist())


def test_unchanged_documents_cost_no_forward_pass(
    language_model: LanguageModel, filled: Datastore
) -> None:
    before, passes = held(filled), counted(language_model)
    report = ingest(corpus(TEXTS), language_model, filled)
    assert passes() == 0
    assert (report.added, report.replaced, report.skipped, report.tokens) == (0, 0, 4, 0)
    np.testing.assert_array_equal(held(filled).keys, before.keys)


def test_changed_documents_are_replaced(language_model: LanguageModel, filled: Datastore) -> None:
    changed = TEXTS | {"a": prose(9, 50), "d": "", "new": "x" * 5}
    old = {d.name: d.version for d in filled.documents()}
    passes = counted(language_model)
    report = ingest(corpus(changed), language_model, filled)
    assert passes() == 4  # one each for windows of 32, 32, 18 and 5 inputs
    assert (report.added, report.replaced, report.skipped) == (1, 2, 2)
    assert report.tokens == 55
    assert_whole(filled)
    for name in ("a", "d"):
        assert filled.backend.count([old[name].number]) == 0
    expected = new_store(language_model)
    ingest(corpus({**TEXTS, "d": "gone"}), language_model, expected)  # another way to get there
    ingest(corpus(changed), language_model, expected)
    assert_same(filled, expected)
    assert ingest(corpus(changed), language_model, filled).skipped == 5


def test_a_new_datastore_gets_the_same_ids(
    language_model: LanguageModel, filled: Datastore, tmp_path: Path
) -> None:
    """Whatever the order, the backend and what was there before."""
    other = new_store(language_model, f"faiss:{tmp_path}/x")
    reverse = dict(reversed(TEXTS.items()))
    ingest(corpus(reverse | {"a": "another"}), language_model, other)
    ingest(corpus(reverse), language_model, other)
    assert_same(other, filled)
    other.close()


def test_two_versions_never_share_an_id(language_model: LanguageModel, filled: Datastore) -> None:
    seen = set(held(filled).ids.tolist())
    for change in ("Z", "ZZ"):
        ingest(corpus({n: change + t for n, t in TEXTS.items()}), language_model, filled)
        now = set(held(filled).ids.tolist())
        assert not seen & now
        seen |= now


def test_metadata_alone(language_model: LanguageModel, filled: Datastore) -> None:
    passes, before = counted(language_model), held(filled)
    report = ingest([document("a", TEXTS["a"], lang="en", n=[1])], language_model, filled)
    assert passes() == 0
    assert (report.skipped, report.replaced) == (1, 0)
    first = next(filled.documents())
    assert first.metadata == {"lang": "en", "n": [1]}
    assert_whole(filled)
    np.testing.assert_array_equal(held(filled).ids, before.ids)


def test_failures_and_empty_documents_are_counted(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    lost, known = Problem("x.txt", "It cannot be read.", True), Problem("y", "A loop.", False)
    stream: list[Document | Problem] = [lost, document("empty", ""), known, document("a", "text")]
    report = ingest(stream, language_model, memory_store)
    assert (report.added, report.skipped, report.failed) == (1, 2, 1)
    empty = Problem("s/empty", "The document has no tokens.", False)
    assert report.problems == [lost, empty, known]
    assert [d.name for d in memory_store.documents()] == ["a"]
    counts = {"added": 1, "replaced": 0, "skipped": 2, "failed": 1}
    assert report.json()["documents"] == counts
    assert report.json()["tokens"] == 4


def test_one_id_twice_in_a_stream(language_model: LanguageModel, memory_store: Datastore) -> None:
    stream = [document("a", "first"), document("a", "second text"), document("a", "first")]
    report = ingest(stream, language_model, memory_store)
    assert (report.added, report.failed) == (1, 2)
    assert {p.what for p in report.problems} == {
        "A document of this id was read before; the first one is kept."
    }
    assert_whole(memory_store)
    assert len(held(memory_store)) == 5


@pytest.fixture
def another_writer() -> Iterator[str]:
    name = writers.new_name()
    writers.begin_work(name)
    yield name
    writers.end_work(name)


def number_of(text: str, name: str) -> int:
    """The number of the version that this text makes."""
    digest = digest_of(document(name, text))
    return Catalog(bare()).new_version(f"s/{name}", digest, len(text), len(text)).number


def test_documents_that_another_writer_has_in_hand(
    language_model: LanguageModel,
    memory_store: Datastore,
    another_writer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are left to it, with what they have: new ones, changed ones, and their metadata."""
    monkeypatch.setattr(intents, "PATIENCE", 0.3)
    before = {"changed": prose(1, 40), "noted": "noted", "free": "before"}
    ingest(corpus(before), language_model, memory_store)
    kept = {d.id: d for d in memory_store.documents()}
    theirs = [an_intent(f"s/{n}", 5, another_writer) for n in ("new", "changed", "noted")]
    intents.put(memory_store.backend, theirs)
    stream = [
        document("new", "mine"),
        document("changed", "mine"),
        document("noted", "noted", language="en"),
        document("free", "after"),
    ]
    report = ingest(stream, language_model, memory_store)
    assert (report.added, report.replaced, report.skipped, report.failed) == (0, 1, 0, 3)
    assert (report.tokens, report.mended) == (5, 0)
    assert [problem.where for problem in report.problems] == ["s/changed", "s/new", "s/noted"]
    assert {problem.what for problem in report.problems} == {
        "Another process is writing this document; ingest it again afterwards."
    }
    now = {d.id: d for d in memory_store.documents()}
    assert (now["s/changed"], now["s/noted"]) == (kept["s/changed"], kept["s/noted"])
    assert "s/new" not in now
    assert set(intents.scan(memory_store.backend)) == set(theirs)
    intents.remove(memory_store.backend, theirs)
    assert_whole(memory_store)
    again = ingest(stream, language_model, memory_store)
    assert (again.added, again.replaced, again.skipped, again.failed) == (1, 1, 2, 0)
    assert_whole(memory_store)


def test_the_same_text_in_another_writers_hands(
    language_model: LanguageModel, memory_store: Datastore, another_writer: str
) -> None:
    """No rival: both write the same ids."""
    theirs = an_intent("s/same", number_of("the same", "same"), another_writer)
    intents.put(memory_store.backend, [theirs])
    report = ingest([document("same", "the same")], language_model, memory_store)
    assert (report.added, report.failed) == (1, 0)
    assert list(intents.scan(memory_store.backend)) == [theirs]
    assert next(memory_store.documents()).version.number == theirs.number


@pytest.mark.parametrize("after", [0, 1, 5])
def test_stopped(language_model: LanguageModel, memory_store: Datastore, after: int) -> None:
    """What Ctrl-C does: documents in hand are finished, no other is begun."""
    texts = {f"{i:02}": prose(i, 20 + 7 * i) for i in range(12)}
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    report = ingest(corpus(texts), language_model, memory_store, stop=stop)
    assert report.interrupted
    assert report.added == after
    assert report.tokens == sum(len(t) for t in list(texts.values())[:after])
    if after:
        assert_whole(memory_store)
    again = ingest(corpus(texts), language_model, memory_store)
    assert (again.skipped, again.added, again.mended) == (after, 12 - after, 0)
    assert not again.interrupted
    expected = new_store(language_model)
    ingest(corpus(texts), language_model, expected)
    assert_same(memory_store, expected)


def test_an_exception_commits_nothing_and_is_mended_by_the_next_run(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    """Also in the same process, and also for documents that changed or went away meanwhile."""

    def tired(report: IngestReport) -> None:
        if report.tokens > 150:
            time.sleep(0.1)  # the writer may write what it has
            raise KeyboardInterrupt

    ingest(corpus({"a": "before"}), language_model, memory_store)
    texts = {"a": prose(1, 100), "b": prose(2, 60), "c": prose(3, 60)}
    with pytest.raises(KeyboardInterrupt):
        ingest(corpus(texts), language_model, memory_store, progress=tired)
    assert [(d.name, d.version.tokens) for d in memory_store.documents()] == [("a", 6)]
    assert {intent.document for intent in intents.scan(memory_store.backend)} >= {"s/a", "s/b"}
    assert len(held(memory_store)) > 6
    report = ingest(corpus({"a": "after", "b": texts["b"]}), language_model, memory_store)
    assert report.mended >= 2
    assert_whole(memory_store)
    expected = new_store(language_model)
    ingest(corpus({"a": "after", "b": texts["b"]}), language_model, expected)
    assert_same(memory_store, expected)


def test_what_is_in_hand_can_be_looked_at(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    """Those that are begun and not yet through the model, until there are none."""
    report = IngestReport()
    before: list[int] = []

    def stop() -> bool:
        before.append(report.in_hand)
        return False

    texts = {str(i): prose(i, 8) for i in range(20)}
    assert ingest(corpus(texts), language_model, memory_store, stop=stop, report=report) is report
    assert before[:3] == [0, 1, 2]
    assert 3 < max(before) < 20
    assert report.in_hand == 0
    assert "begun" not in report.json()


def test_nothing_to_read(language_model: LanguageModel, memory_store: Datastore) -> None:
    report = ingest([], language_model, memory_store)
    assert report == IngestReport(seconds=report.seconds)
    assert memory_store.backend.count() == 0


def test_documents_are_read_as_they_are_needed(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    """One forward pass happens after a few windows were read, not after the whole corpus."""
    taken = 0
    when_written: list[int] = []

    def stream() -> Iterator[Document]:
        nonlocal taken
        for i in range(60):
            taken += 1
            yield document(str(i), prose(i, 30))

    ingest(stream(), language_model, memory_store, progress=lambda _: when_written.append(taken))
    assert when_written[0] <= 6
    ahead = [t - i for i, t in enumerate(when_written)]
    assert max(ahead) <= 6
