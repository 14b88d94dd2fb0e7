"""Faults on the way to any server: what must hold whatever its replies become.

Subclass it and give the fixtures `place`, the URI of a server without a name (of module scope),
`uri`, a datastore that is not there yet on that server, whose key the environment has, `proxy`,
what stands before it, and for the whole module an automatic one that is `kept_secret` of the key.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from knnlm_store import registry
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable
from knnlm_store.evaluation import evaluate
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from tests.cli_support import run
from tests.faults_commands import (
    COMMANDS,
    EVERY,
    Command,
    assert_kept,
    assert_told,
    commands,
    loud,
)
from tests.faults_servers import silent
from tests.faults_support import (
    BEFORE,
    MIXTURE,
    Chance,
    assert_as,
    at_calls,
    continued,
    hasty,
    ingested,
    logits_of,
    made_exact,
    mixing,
    outcome_of,
    prompt,
    quiet_run,
    read,
    stages,
)
from tests.ingest_support import corpus, held
from tests.proxies import FALSE, FAULTS, TRANSIENT, Moods, passing


def through(proxy: Moods, uri: str) -> str:
    """The same datastore by way of a proxy."""
    return str(replace(registry.parse(uri), root=proxy.address))


class FaultSuite:
    """A datastore on a server, reached by way of a proxy."""

    scheme: ClassVar[str]
    key: ClassVar[tuple[str, str]]
    """The variable that has the key, and the key, which may be shown nowhere."""
    timeout: ClassVar[tuple[str, str]]
    """The variable that has the seconds of a call, and how many are short and yet enough."""
    late: ClassVar[tuple[str, str]]
    """What is said of a server, at {}, whose answer does not come: a pattern, and the hint."""
    silent: ClassVar[tuple[str, str]]
    """What is said of one that never said a word."""
    refused: ClassVar[tuple[str, str]]
    """What is said of one that asks for another key, or for one."""
    rounds: ClassVar[int] = 3
    """Ingests that are spoilt."""
    spoiling: ClassVar[dict[str, tuple[tuple[str, ...], float]]] = {
        "transient": (TRANSIENT, 0.1),
        "false": (FALSE, 0.02),
    }
    """Of what kind, and how often, faults are meanwhile."""
    reads: ClassVar[int] = 150
    group_seconds: ClassVar[float] = 0.05
    """Time after which ingests commit."""

    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls, place: str, shared_model: LanguageModel) -> str:
        """A datastore that holds BEFORE."""
        uri = f"{place}/filled_{time.time_ns()}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(*cls.key)
            made_exact(shared_model, uri)
            ingested(shared_model, uri, BEFORE)
        return uri

    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Calls may take a short time only."""
        monkeypatch.setenv(*self.timeout)

    @pytest.fixture
    def command(self, saved_model: Path, tmp_path: Path) -> Command:
        """Run one of EVERY about the datastore of a URI."""
        return commands(saved_model, tmp_path / "s")

    # -- spoilt at random ----------------------------------------------------------------------

    @pytest.mark.usefixtures("short")
    @pytest.mark.parametrize("kind", ["transient", "false"])
    def test_spoilt_ingests(
        self,
        uri: str,
        proxy: Moods,
        shared_model: LanguageModel,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
    ) -> None:
        """They go through or end with an error of ours, and then the next one mends it all."""
        hasty(monkeypatch, group_seconds=self.group_seconds)
        faults, rate = self.spoiling[kind]
        texts = stages(len(faults), self.rounds)
        ingested(shared_model, uri, texts[0])
        work, outcomes = partial(ingested, shared_model, through(proxy, uri)), Counter[str]()
        for number, each in enumerate(texts[1:]):
            for attempt in range(4):
                proxy.mood = Chance(4 * number + attempt, rate, faults)
                outcome = outcome_of(partial(work, each))
                outcomes[outcome] += 1
                if not outcome:
                    break
        assert sum(proxy.done[fault] for fault in faults) >= self.rounds
        ingested(shared_model, uri, texts[-1])
        assert_as(uri, quiet_run(shared_model, *texts))

    @pytest.mark.usefixtures("short")
    def test_spoilt_reads(self, filled: str, proxy: Moods) -> None:
        """Are true or refused."""
        chance = random.Random(0)
        with Datastore.open(through(proxy, filled)) as store:
            entries = held(store)
            proxy.mood = Chance(0, 0.3, [fault for fault in FAULTS if fault != "hang"])
            outcomes = Counter(
                outcome_of(partial(read, store, entries, chance)) for _ in range(self.reads)
            )
        assert 0.2 < outcomes[""] / outcomes.total() < 0.9

    @pytest.mark.usefixtures("short")
    def test_spoilt_decoding(
        self, filled: str, proxy: Moods, language_model: LanguageModel
    ) -> None:
        """Each step is the mixture's or the plain model's, bit for bit, and nothing raises."""
        with (
            Datastore.open(through(proxy, filled)) as store,
            mixing(language_model, store, 0.5) as lm,
        ):
            tokens = continued(lm, prompt(lm), 30)
            mixed = logits_of(lm, tokens)
            plain = logits_of(lm.off(), tokens)
            before = lm.on().counters.fallbacks
            proxy.mood = Chance(1, 0.2, FAULTS)
            found = logits_of(lm, tokens)
            fallbacks = lm.counters.fallbacks - before
        fell = [torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
        kept = [torch.equal(a, b) for a, b in zip(found, mixed, strict=True)]
        assert [a != b for a, b in zip(fell, kept, strict=True)] == [True] * len(found)
        assert 0 < fallbacks == sum(fell) < len(found)

    # -- silent --------------------------------------------------------------------------------

    @pytest.mark.usefixtures("short")
    def test_answers_stop_while_it_is_used(
        self,
        filled: str,
        proxy: Moods,
        language_model: LanguageModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Reading and writing end with the reason, in time; decoding goes on."""
        hasty(monkeypatch, give_up_after=0.2)
        message, hint = self.late[0].format(re.escape(proxy.address)), self.late[1]

        def stop() -> None:
            proxy.mood = lambda _: "hang"

        with Datastore.open(through(proxy, filled)) as store:
            keys = held(store).keys[:3]
            works: dict[str, Callable[[], object]] = {
                "search": lambda: store.search(keys, 4),
                "ingest": lambda: ingest(corpus({"new": BEFORE["11"]}), language_model, store),
                "eval": lambda: evaluate(corpus(BEFORE), language_model, store, MIXTURE),
            }
            for name, work in works.items():
                began = time.monotonic()
                with pytest.MonkeyPatch.context() as patch:
                    method = "_upsert" if name == "ingest" else "_search"
                    at_calls(patch, type(store.backend), method, {1: stop})
                    with pytest.raises(BackendUnavailable, match=message) as caught:
                        work()
                assert time.monotonic() - began < 3 * float(self.timeout[1]) + 2
                assert caught.value.hint == hint
                proxy.mood = passing
            with mixing(language_model, store, 0.3) as lm:
                tokens = prompt(lm)
                began = time.monotonic()
                made = continued(lm, tokens, 20, {5: stop})
                assert time.monotonic() - began < 5
                assert lm.counters.fallbacks == 15
                kept = made[:, : tokens.shape[1] + 5]
                assert torch.equal(continued(lm.off(), kept, 15), made)
        proxy.mood = passing

    @pytest.mark.parametrize("name", COMMANDS)
    def test_commands_end_in_time(
        self, name: str, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(self.timeout[0], "0.5")
        monkeypatch.setenv(*self.key)
        with silent() as address:
            began = time.monotonic()
            done = command(name, f"{self.scheme}://{address}/law")
        assert 0.4 < time.monotonic() - began < 5
        assert_told(done, self.silent, address)

    # -- refused -------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["", "guessed-7c1"], ids=["none", "wrong"])
    def test_a_key_that_is_refused(
        self, uri: str, key: str, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(self.key[0], key)
        for name in EVERY:
            assert_told(command(name, uri), self.refused, registry.parse(uri).root)

    def test_a_newer_format(self, filled: str) -> None:
        """Of the manifest: told, and nothing is touched."""
        backend = registry.connect(filled)
        count, kept = backend.count(), backend.get_records(["manifest"])
        manifest = json.loads(kept["manifest"])
        backend.put_records({"manifest": json.dumps(manifest | {"format": 2}).encode()})
        told = f"{filled} has format 2; this version reads format 1."
        expected = (1, told, "Run: pip install --upgrade knnlm-store")
        assert run("info", filled).failure() == expected
        assert backend.count() == count
        backend.put_records(kept)
        backend.close()

    # -- secret --------------------------------------------------------------------------------

    @pytest.mark.usefixtures("short")
    def test_a_key_in_a_file(
        self,
        uri: str,
        proxy: Moods,
        command: Command,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Serves every command; nothing shows it, however much is logged and whatever fails."""
        variable, key = self.key
        (tmp_path / "key").write_text(f"{key}\n")
        monkeypatch.delenv(variable)
        monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "key"))
        loud(monkeypatch)
        said = []
        for name, fault in zip(EVERY, cycle(FAULTS), strict=False):
            if name != "rm":
                proxy.mood = Chance(0, 1.0, [fault])
                said.append(command(name, through(proxy, uri)))
            proxy.mood = passing
            said.append(command(name, through(proxy, uri)))
            assert said[-1].code == 0, said[-1].err
        shown = "".join(done.out + done.err for done in said)
        assert "DEBUG" in shown
        assert "Traceback" in shown
        assert_kept(key, shown)
