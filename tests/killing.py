"""A program that ingests in child processes and kills them: `python -m tests.killing MODEL FOLDER`.

The parent loads the model once and never computes with it, so that forking is safe. A child
tells each change to the datastore, and is killed some time after the n-th.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from knnlm_store import intents, writer
from knnlm_store.backend import VectorBackend
from knnlm_store.comparing import digest_of
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel, load
from knnlm_store_faiss import FaissBackend
from tests.ingest_support import corpus, new_store, prose

BEFORE = {f"{i:02}": prose(i, 10 + 3 * i) for i in range(24)}
AFTER = {name: text if int(name) % 3 else text[::-1] for name, text in BEFORE.items()} | {
    f"new{i}": prose(100 + i, 25) for i in range(12)
}


def telling(adapter: type[VectorBackend], pipe: int) -> None:
    """Have a backend write a byte to a pipe before each change, in this process from now on."""
    for name in ("upsert", "delete", "flush", "put_records", "delete_records"):
        setattr(adapter, name, _told(getattr(adapter, name), pipe))


def _told(change: Callable[..., None], pipe: int) -> Callable[..., None]:
    def told(*args: Any) -> None:
        os.write(pipe, b".")
        change(*args)

    return told


def work(folder: Path, texts: Mapping[str, str], lm: LanguageModel, pipe: int) -> NoReturn:
    """What a child does."""
    try:
        writer._GROUP_SECONDS, writer._BATCH = 0.05, 64 * 128
        telling(FaissBackend, pipe)
        with new_store(lm, f"faiss:{folder}") as store:
            ingest(corpus(texts), lm, store)
    except BaseException:  # noqa: BLE001  a child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run(
    folder: Path, texts: Mapping[str, str], lm: LanguageModel, fatal: int = 0, delay: float = 0.0
) -> tuple[bool, int]:
    """Run a child, killed some seconds after its fatal change: was it, and how many were there."""
    reader, pipe = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        work(folder, texts, lm, pipe)
    os.close(pipe)
    changes = 0
    with open(reader, "rb", buffering=0) as stream:
        while stream.read(1):
            changes += 1
            if changes == fatal:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise SystemExit(1)
    return os.WIFSIGNALED(status), changes


def state(folder: Path) -> str:
    """What a killed run left, as JSON."""
    new = {digest_of(d) for d in corpus(AFTER)} - {digest_of(d) for d in corpus(BEFORE)}
    with Datastore.open(f"faiss:{folder}") as store:
        records = list(store.documents())
        in_hand = list(intents.scan(store.backend))
    return json.dumps(
        {
            "intents": len(in_hand),
            "committed": sum(d.version.digest in new for d in records),
            "changed": len(new),
        }
    )


def main(model: str, folder: Path) -> None:
    torch.set_num_threads(1)
    lm, chance = load(model, window=32), random.Random(0)
    run(folder / "before", BEFORE, lm)
    shutil.copytree(folder / "before", folder / "whole")
    _, changes = run(folder / "whole", AFTER, lm)
    for i in range(20):
        killed = folder / f"killed{i}"
        shutil.copytree(folder / "before", killed)
        moments = [1 + int((i + chance.random()) / 20 * 0.9 * changes), chance.randint(1, 9)]
        for fatal in moments[: 1 + i % 2]:
            if run(killed, AFTER, lm, fatal, chance.random() * 0.004)[0]:
                print(state(killed))
        run(killed, AFTER, lm)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
