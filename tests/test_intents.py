"""Claims, in every order of steps: never two rivals at once, and somebody always gets on.

Assumed of the backend: a read sees every write that was over before it began.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import product

import pytest

from knnlm_store import intents, writers
from knnlm_store.errors import StoreCorrupt
from knnlm_store.intents import Claims, Intent
from tests.ingest_support import an_intent, bare
from tests.interleaving import Choice, Interleaved, Program, at_random, in_order, run

TIDY = 0


def an(writer: str, number: int, document: str = "s/a") -> Intent:
    """An intent to write a version, or, of number 0, to tidy up."""
    return Intent(document, number, bool(number), writer, 0.0)


class Room:
    """Notices rivals who are at work on one document at once."""

    def __init__(self) -> None:
        self.inside: list[Intent] = []
        self.won: list[Intent] = []
        self.together = 0

    def enter(self, intent: Intent) -> None:
        for other in self.inside:
            assert not intent.is_rival_of(other), (intent, other)
            self.together += 1
        self.inside.append(intent)
        self.won.append(intent)

    def leave(self, intent: Intent) -> None:
        self.inside.remove(intent)


class Meeting:
    """Claimants of one datastore; each goes to work for two steps on what it wins."""

    def __init__(self, wanted: Iterable[list[Intent]], *, paged: bool = False) -> None:
        self.backend, self.room = Interleaved.made(paged=paged), Room()
        self.polls = math.inf  # of each claimant, before it gives up
        self.deaths: dict[int, int] = {}
        self._wanted = list(wanted)
        self.claims: dict[str, Claims] = {}

    def hold(self, choose: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
        programs = [
            Program(self._claimant(wanted), self.deaths.get(place))
            for place, wanted in enumerate(self._wanted)
        ]
        for program, wanted in zip(programs, self._wanted, strict=True):
            program.names = {intent.writer for intent in wanted}

        def is_gone(name: str, _: float) -> bool:
            return any(program.died and name in program.names for program in programs)

        monkeypatch.setattr(writers, "is_gone", is_gone)
        run(programs, choose)

    def _claimant(self, wanted: list[Intent]) -> Callable[[Program], None]:
        def work(me: Program) -> None:
            polls = 0

            def sleep(_: float) -> bool:
                nonlocal polls
                polls += 1
                me.step()
                return polls >= self.polls

            claims = intents.claim(self.backend, wanted, math.inf, sleep)
            self.claims[wanted[0].writer] = claims
            won = [intent for intent in wanted if intent.document in claims.won]
            try:
                for intent in won:
                    self.room.enter(intent)
                me.step()
                me.step()
            finally:  # also by its death: who is dead is at work no more
                for intent in won:
                    self.room.leave(intent)
            intents.remove(self.backend, [*won, *claims.abandoned])

        return work

    def left(self) -> list[Intent]:
        return list(intents.scan(self.backend))


# -- in every order ------------------------------------------------------------------------------

PAIRS = [(1, 2), (1, 1), (1, TIDY), (TIDY, 1), (TIDY, TIDY)]


@pytest.mark.parametrize("numbers", PAIRS, ids=str)
def test_two_in_every_order(monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int]) -> None:
    """Every order of the first nine steps; both win in the end, one after the other if rivals."""
    together = 0
    for first in product(range(2), repeat=9):
        meeting = Meeting([[an("a", numbers[0])], [an("b", numbers[1])]])
        meeting.hold(in_order(first), monkeypatch)
        assert len(meeting.room.won) == 2
        assert meeting.left() == []
        together += meeting.room.together
    assert (together > 0) == (numbers == (1, 1))


TRIPLES = [(1, 2, 3), (1, 2, 1), (1, 1, 2), (2, 1, 1), (1, TIDY, 2), (TIDY, TIDY, 1), (1, 1, 1)]


@pytest.mark.parametrize("paged", [False, True], ids=["atomic", "paged"])
@pytest.mark.parametrize("numbers", TRIPLES, ids=str)
def test_three_in_many_orders(
    monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...], paged: bool
) -> None:
    for seed in range(60):
        names = random.Random(seed).sample("abc", 3)
        wanted = [[an(name, number)] for name, number in zip(names, numbers, strict=True)]
        meeting = Meeting(wanted, paged=paged)
        meeting.hold(at_random(seed), monkeypatch)
        assert len(meeting.room.won) == 3
        assert meeting.left() == []


def test_several_documents_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds one may wait for another: that ends, for nobody waits for ever."""
    sets = ["xy", "yz", "zx"]
    lost = 0
    for seed in range(120):
        wanted = [
            [an(name, number, d) for d in documents]
            for number, (name, documents) in enumerate(zip("bca", sets, strict=True), 1)
        ]
        meeting = Meeting(wanted, paged=bool(seed % 2))
        meeting.polls = 6
        meeting.hold(at_random(seed), monkeypatch)
        assert meeting.left() == []
        assert {intent.document for intent in meeting.room.won} == set("xyz")
        lost += 6 - len(meeting.room.won)
    assert lost


def test_who_gives_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short its patience, and wherever in its steps it runs out."""
    lost = many = 0
    for seed in range(150):
        meeting = Meeting([[an(name, i)] for i, name in enumerate("cab", 1)], paged=bool(seed % 2))
        meeting.polls = 1 + seed % 3
        meeting.hold(at_random(seed), monkeypatch)
        won = {intent.writer for intent in meeting.room.won}
        assert won == {name for name, claims in meeting.claims.items() if claims.won == {"s/a"}}
        assert meeting.left() == []
        lost += 3 - len(won)
        many += len(won) > 1
    assert lost > 50
    assert many > 10


def test_who_dies_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left goes to a winner, who removes it; the living all win."""
    handed_over = withdrawn = 0
    for seed in range(200):
        chance = random.Random(seed)
        numbers = [chance.choice([TIDY, 1, 1, 2]) for _ in range(3)]
        wanted = [[an(name, number)] for name, number in zip("bca", numbers, strict=True)]
        meeting = Meeting(wanted, paged=bool(seed % 2))
        meeting.deaths = {0: chance.randint(1, 9)}
        meeting.hold(at_random(seed), monkeypatch)
        assert {intent.writer for intent in meeting.room.won} >= {"c", "a"}
        abandoned = [i for claims in meeting.claims.values() for i in claims.abandoned]
        assert all(intent == wanted[0][0] for intent in abandoned)
        assert all(intent == wanted[0][0] for intent in meeting.left())
        handed_over += bool(abandoned)
        withdrawn += not abandoned and not meeting.left()
    assert handed_over > 20
    assert withdrawn  # it died before it came, or while it had stepped back


# -- one by one ----------------------------------------------------------------------------------


def no_sleep(_: float) -> object:
    raise AssertionError("It waits.")


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names: set[str] = set()
    monkeypatch.setattr(writers, "is_gone", lambda name, _: name not in names)
    return names


@pytest.mark.parametrize(
    ("one", "other", "rivals"),
    [
        (an("a", 1), an("b", 2), True),
        (an("a", 1), an("b", 1), False),
        (an("a", 1), an("a", 2), False),
        (an("a", 1), an("b", 2, "s/b"), False),
        (an("a", 1), an("b", TIDY), True),
        (an("a", TIDY), an("b", TIDY), True),
        (an("a", 1), Intent("s/a", 1, False, "b", 0.0), True),  # metadata of the same version
    ],
)
def test_rivals(one: Intent, other: Intent, rivals: bool) -> None:
    assert one.is_rival_of(other) == other.is_rival_of(one) == rivals


def test_one_of_two_steps_back() -> None:
    """Whoever they are: tidying up yields to writing, else the larger name does."""
    every = [an(name, number) for name in "abc" for number in (TIDY, 1, 2)]
    for one, other in product(every, every):
        if one.is_rival_of(other):
            assert one.yields_to(other) != other.yields_to(one)
    assert an("a", TIDY).yields_to(an("b", 1))
    assert an("b", 1).yields_to(an("a", 2))


def test_nothing_wanted(living: set[str]) -> None:
    backend = bare()
    backend.drop()  # it is not even asked
    assert intents.claim(backend, []) == Claims(set(), [])


def test_no_rival_no_waiting(living: set[str]) -> None:
    backend = bare()
    living.update("abc")
    others = [an("b", 1), an("c", 2, "s/b")]
    intents.put(backend, others)
    mine = an("a", 1)
    assert intents.claim(backend, [mine], sleep=no_sleep) == Claims({"s/a"}, [])
    assert {i.name for i in intents.scan(backend)} == {i.name for i in (mine, *others)}


def test_without_patience_a_rival_wins(living: set[str]) -> None:
    backend = bare()
    living.update("ab")
    theirs = an("b", 2)
    intents.put(backend, [theirs])
    wanted = [an("a", 1), an("a", 3, "s/free")]
    assert intents.claim(backend, wanted, 0.0, no_sleep) == Claims({"s/free"}, [])
    assert set(intents.scan(backend)) == {theirs, wanted[1]}


def test_only_what_the_dead_left_on_ours_is_handed_over(living: set[str]) -> None:
    backend = bare()
    living.update("ab")
    left = [an("dead", 7), an("dead too", 1), an("dead", 8, "s/theirs"), an("dead", 9, "s/else")]
    intents.put(backend, [*left, an("b", 5, "s/theirs")])
    claims = intents.claim(backend, [an("a", 1), an("a", 1, "s/theirs")], 0.0)
    assert claims.won == {"s/a"}
    assert {intent.name for intent in claims.abandoned} == {left[0].name, left[1].name}


def test_waiting_ends_with_the_rivals_work(living: set[str]) -> None:
    backend = bare()
    living.update("ab")
    theirs, waited = an("b", 2), []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert seconds <= 1
        if len(waited) == 4:
            intents.remove(backend, [theirs])

    intents.put(backend, [theirs])
    assert intents.claim(backend, [an("a", 1)], sleep=sleep).won == {"s/a"}
    assert len(waited) == 4


def test_renewing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bare()
    mine = an_intent("s/a", 1, "a", at=1.0)
    intents.put(backend, [mine])
    monkeypatch.setattr("time.time", lambda: 5.0)
    intents.renew(backend, [mine])
    (kept,) = intents.scan(backend)
    assert (kept.name, kept.at) == (mine.name, 5.0)


@pytest.mark.parametrize("value", [b"", b"null", b"[]", b"{}", b"\xff", b'{"document": "s/a"}'])
def test_a_corrupt_intent(value: bytes) -> None:
    backend = bare()
    backend.put_records({"intent/a/s/a": value})
    with pytest.raises(StoreCorrupt, match=r"The record 'intent/a/s/a' cannot be read\."):
        list(intents.scan(backend))
