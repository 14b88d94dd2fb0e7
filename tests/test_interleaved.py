"""Whole changes of one document, interleaved step by step, some of them cut short by a death."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from knnlm_store import intents, writers
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change, DocumentRecord, scan
from tests.ingest_support import an_intent, put_documents, record, some_entries
from tests.interleaving import Interleaved, Program, at_random, run

OLD, DEAD, STALE = 100, 900, 800
TEXTS = (200, 300, STALE)  # versions that writers want; one of them was there once before
TIDY = 0


@dataclass
class Scene:
    """A document with leftovers of killed runs, and programs that are at it."""

    backend: Interleaved
    programs: list[Program]
    succeeded: list[int]

    @classmethod
    def made(cls, seed: int, what: list[int], dying: int | None) -> Scene:
        backend = Interleaved.made(paged=bool(seed % 2))
        chance = random.Random(seed)
        if chance.random() < 0.8:
            stale = (STALE,) if chance.random() < 0.6 else ()
            put_documents(backend, [record("a", OLD, stale=stale)])
            for number in (OLD, *stale):
                backend.upsert(some_entries(number, 5))
        if chance.random() < 0.6:
            intents.put(backend, [an_intent("s/a", DEAD, "dead:0")])
            backend.upsert(some_entries(DEAD, 3))
        scene = cls(backend, [], [])
        for place, number in enumerate(what):
            work = scene.tidy if number == TIDY else scene.change(number)
            scene.programs.append(Program(work, dying if place == 0 else None))
        return scene

    def change(self, number: int) -> Callable[[Program], None]:
        def work(me: Program) -> None:
            known = Catalog(self.backend)
            me.names.add(known._writer)
            change = Change(record("a", number))
            assert known.claim([change], math.inf, me.step) == set()
            self.backend.upsert(some_entries(number, 5)[:2])
            self.backend.upsert(some_entries(number, 5)[2:])
            self.backend.flush()
            known.commit([change])
            known.release([change])
            self.succeeded.append(number)

        return work

    def tidy(self, me: Program) -> None:
        known = Catalog(self.backend)
        me.names.add(known._writer)
        known.recover()

    def is_gone(self, name: str, _: float) -> bool:
        dead = {name for program in self.programs if program.died for name in program.names}
        return name.startswith("dead:") or name in dead

    def held(self) -> dict[int, int]:
        """How many entries each version has."""
        found = [int(n) for batch in self.backend.scan() for n in batch.documents]
        return {number: found.count(number) for number in found}

    def document(self) -> DocumentRecord | None:
        return next(scan(self.backend), None)


def patch(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    monkeypatch.setattr(writers, "is_gone", scene.is_gone)
    monkeypatch.setattr(intents, "_POLL", 0.0)


def assert_whole(scene: Scene) -> None:
    document = scene.document()
    assert list(intents.scan(scene.backend)) == []
    assert scene.held() == ({document.version.number: 5} if document else {})
    assert document is None or document.stale == ()


@pytest.mark.parametrize("dies", [False, True], ids=["all_live", "one_dies"])
@pytest.mark.parametrize(
    "what",
    [(200, 200), (200, 300), (STALE, STALE), (200, 200, 300), (200, STALE, TIDY), (200, 200, TIDY)],
    ids=str,
)
def test_changes_of_one_document(
    monkeypatch: pytest.MonkeyPatch, what: tuple[int, ...], dies: bool
) -> None:
    """Whoever was told that it is done is in force, or was replaced by who was told so later."""
    cut_short = 0
    for seed in range(60):
        chance = random.Random(seed)
        scene = Scene.made(seed, list(what), chance.randint(2, 22) if dies else None)
        patch(monkeypatch, scene)
        run(scene.programs, at_random(seed))
        cut_short += scene.programs[0].died
        assert len(scene.succeeded) >= sum(number != TIDY for number in what) - dies
        Catalog(scene.backend).recover()
        assert_whole(scene)
        document = scene.document()
        assert document is not None
        if scene.programs[0].died:  # its change may have been made, its success not told
            assert document.version.number in {*scene.succeeded[-1:], what[0]}
        else:
            assert document.version.number == scene.succeeded[-1]
    assert (cut_short > 10) == dies


def test_metadata_and_text_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of the old version is never put over the new one."""
    for seed in range(60):
        scene = Scene.made(seed, [200], None)
        old = scene.document()
        if old is None:
            continue
        change = Change(replace(old, metadata={"language": "en"}), with_entries=False)

        def annotate(me: Program, scene: Scene = scene, change: Change = change) -> None:
            known = Catalog(scene.backend)
            assert known.claim([change], math.inf, me.step) == set()
            known.commit([change])
            known.release([change])

        scene.programs.append(Program(annotate))
        patch(monkeypatch, scene)
        run(scene.programs, at_random(seed))
        Catalog(scene.backend).recover()
        assert_whole(scene)
        document = scene.document()
        assert document is not None
        assert (document.version.number, document.metadata) == (200, {})
