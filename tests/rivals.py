"""A program that has two processes ingest at once: `python -m tests.rivals MODEL FOLDER`.

The parent loads the model once and never computes with it, so that forking is safe. Each round
leaves a datastore in FOLDER/NAME and prints a line of JSON about it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from knnlm_store import intents, writer
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel, load
from tests.ingest_support import corpus, new_store, prose
from tests.killing import Telling

OLD = {f"{i:02}": prose(i, 12 + 4 * i) for i in range(6)}
NAMES = [f"{i:02}" for i in range(14)]
MINE = {name: "mine " + prose(50 + i, 20 + 5 * i) for i, name in enumerate(NAMES)}
THEIRS = {name: "theirs " + prose(80 + i, 90 - 5 * i) for i, name in enumerate(NAMES)}
ROUNDS: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "different": ({f"a{n}": t for n, t in MINE.items()}, {f"b{n}": t for n, t in THEIRS.items()}),
    "same": (MINE, MINE),
    "clash": (MINE, THEIRS),
    "killed_same": (MINE, MINE),
    "killed_clash": (MINE, THEIRS),
}
TIMES = 6


@dataclass
class Child:
    """A process that ingests, and the pipes through which its changes and its report come."""

    pid: int
    changes: int
    pipe: int

    def kill_after(self, changes: int, delay: float) -> None:
        """Kill it some seconds after so many changes to the datastore, if it makes so many."""
        while changes and os.read(self.changes, 1):
            changes -= 1
        time.sleep(delay)
        os.kill(self.pid, signal.SIGKILL)

    def report(self) -> dict[str, Any] | None:
        """What it did; None if it was killed."""
        with open(self.pipe, encoding="utf-8") as stream:
            told = stream.read()
        os.close(self.changes)
        status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(status):
            return None
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(1)
        report: dict[str, Any] = json.loads(told)
        return report


def start(
    folder: Path, texts: Mapping[str, str], lm: LanguageModel, seed: int, patience: float = 3.0
) -> Child:
    """Ingest in another process, for some seeds in another order."""
    (reader, pipe), (told, changes) = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(pipe)
        os.close(changes)
        return Child(child, told, reader)
    try:
        intents.PATIENCE, intents._POLL, Telling.pipe = patience, 0.02, changes
        os.write(pipe, json.dumps(work(folder, texts, lm, seed)).encode())
    except BaseException:  # noqa: BLE001  a child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def work(folder: Path, texts: Mapping[str, str], lm: LanguageModel, seed: int) -> dict[str, Any]:
    """What a child does."""
    chance, names = random.Random(seed), list(texts)
    if chance.random() < 0.5:
        chance.shuffle(names)
    writer._GROUP_SECONDS, writer._BATCH = chance.choice([0.05, 5.0]), 16 * 128
    time.sleep(chance.random() * 0.05)
    with new_store(lm, f"faiss:{folder}") as made:
        backend = Telling.connect(made.location)
        store = Datastore(made.location, backend, made.manifest)
        return ingest(corpus({n: texts[n] for n in names}), lm, store, batch_tokens=64).json()


def meet(name: str, folder: Path, lm: LanguageModel, seed: int) -> None:
    """Have two children at one datastore, and a third one after one of them was killed."""
    chance = random.Random(f"{name}{seed}")
    patience = 0.05 if name == "clash" and seed % 2 else 3.0
    children = [
        start(folder, texts, lm, chance.getrandbits(32), patience) for texts in ROUNDS[name]
    ]
    if name.startswith("killed"):
        chance.choice(children).kill_after(chance.randint(1, 20), chance.random() * 0.004)
    reports, last = [child.report() for child in children], None
    if name.startswith("killed"):
        last = start(folder, ROUNDS[name][0], lm, seed).report()
    told = {"round": name, "folder": str(folder), "reports": reports, "last": last}
    print(json.dumps(told), flush=True)


def main(model: str, folder: Path) -> None:
    torch.set_num_threads(1)
    lm = load(model, window=32)
    start(folder / "old", OLD, lm, 0).report()
    for name in ROUNDS:
        for time_ in range(TIMES):
            place = folder / f"{name}{time_}"
            shutil.copytree(folder / "old", place)
            meet(name, place, lm, time_)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
