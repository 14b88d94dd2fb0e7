"""A program that has two processes ingest at once: `python -m tests.rivals MODEL ROOT`.

ROOT is where the datastores go: `faiss:FOLDER`, or a server. The parent loads the model once and
never computes with it, nor calls a server, so that forking is safe. Each round prints a line of
JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from knnlm_store import intents, registry, writer
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel, load
from tests.ingest_support import corpus, prose
from tests.killing import telling

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
LATE = {f"k{n}": t for n, t in THEIRS.items()}
SERVED = {"different": ROUNDS["different"], "same": ROUNDS["same"], "killed_same": (LATE, LATE)}


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
    uri: str,
    texts: Mapping[str, str],
    lm: LanguageModel,
    seed: int,
    patience: float = 3.0,
    together: Barrier | None = None,
) -> Child:
    """Ingest in another process, for some seeds in another order; opens at once with others."""
    (reader, pipe), (told, changes) = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(pipe)
        os.close(changes)
        return Child(child, told, reader)
    try:
        intents.PATIENCE, intents._POLL = patience, 0.02
        telling(registry.load(registry.parse(uri).scheme), changes)
        os.write(pipe, json.dumps(work(uri, texts, lm, seed, together)).encode())
    except BaseException:  # noqa: BLE001  a child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def work(
    uri: str, texts: Mapping[str, str], lm: LanguageModel, seed: int, together: Barrier | None
) -> dict[str, Any]:
    """What a child does; `found`: whether the datastore was there."""
    chance, names = random.Random(seed), list(texts)
    if chance.random() < 0.5:
        chance.shuffle(names)
    writer._GROUP_SECONDS, writer._BATCH = chance.choice([0.05, 5.0]), 16 * 128
    found = is_there(uri)
    if together is not None:
        together.wait(60)
    options = {} if uri.startswith("faiss:") else {"index": "exact"}
    with Datastore.open_or_create(uri, lm.manifest(), "float32", options) as store:
        time.sleep(chance.random() * 0.05)
        report = ingest(corpus({n: texts[n] for n in names}), lm, store, batch_tokens=64)
        return report.json() | {"found": found}


def is_there(uri: str) -> bool:
    backend = registry.connect(uri)
    found = backend.exists()
    backend.close()
    return found


def meet(
    name: str, uri: str, texts: Sequence[Mapping[str, str]], lm: LanguageModel, seed: int = 0
) -> None:
    """Have two children at one datastore, and a third one after one of them was killed."""
    chance, together = random.Random(f"{name}{seed}"), multiprocessing.Barrier(2)
    patience = 0.05 if name == "clash" and seed % 2 else 3.0
    children = [start(uri, each, lm, chance.getrandbits(32), patience, together) for each in texts]
    if name.startswith("killed"):
        victim = chance.choice(children) if uri.startswith("faiss:") else first_to_change(children)
        victim.kill_after(chance.randint(1, 20), chance.random() * 0.004)
    reports, last = [child.report() for child in children], None
    if name.startswith("killed"):
        last = start(uri, texts[0], lm, seed).report()
    print(json.dumps({"round": name, "uri": uri, "reports": reports, "last": last}), flush=True)


def first_to_change(children: Sequence[Child]) -> Child:
    """The one that is sure to have work left."""
    ready, _, _ = select.select([child.changes for child in children], [], [])
    return next(child for child in children if child.changes in ready)


def in_folders(folder: Path, lm: LanguageModel) -> None:
    """Every kind of round some times, each in a datastore of its own."""
    start(f"faiss:{folder}/old", OLD, lm, 0).report()
    for name, texts in ROUNDS.items():
        for time_ in range(TIMES):
            shutil.copytree(folder / "old", folder / f"{name}{time_}")
            meet(name, f"faiss:{folder}/{name}{time_}", texts, lm, time_)


def on_server(root: str, lm: LanguageModel) -> None:
    """Some kinds once, in one datastore, which the first two processes make."""
    uri = f"{root}/rivals_{uuid.uuid4().hex[:8]}"
    for name, texts in SERVED.items():
        meet(name, uri, texts, lm)


def main(model: str, root: str) -> None:
    torch.set_num_threads(1)
    lm = load(model, window=32)
    registry.load(registry.parse_root(root).scheme)  # once, not in every child
    if root.startswith("faiss:"):
        in_folders(Path(root.removeprefix("faiss:")), lm)
    else:
        on_server(root, lm)


if __name__ == "__main__":
    main(*sys.argv[1:])
