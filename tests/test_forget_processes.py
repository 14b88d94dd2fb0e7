"""Forgetting in processes of its own: killed anywhere, and beside others that write and forget."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from knnlm_store.datastore import Datastore
from knnlm_store.integrity import check
from tests.changing import SOURCE, texts_in, write
from tests.cli_support import finish, spawn
from tests.test_living import manifest

ROOT = Path(__file__).parent.parent
KEPT = {f"kept{i}": f"a text that stays {i}" for i in range(20)}


def test_killed_and_run_again(tmp_path: Path) -> None:
    """Wherever it dies, what is left is whole, and the same command brings it to its end."""
    uri = f"faiss:{tmp_path}/killed"
    random_ = random.Random(0)
    with Datastore.open_or_create(uri, manifest(), "float32") as store:
        write(store.backend, KEPT, source="kept")
        write(store.backend, {f"{i:04}": f"text {i}" for i in range(1500)})
        command = ("forget", "--store", uri, "--where", f"source={SOURCE}", "--yes", "--json")
        kills = 0
        for _ in range(5):
            process = spawn(*command)
            time.sleep(0.3 + 0.5 * random_.random())
            process.kill()
            process.communicate()
            kills += process.returncode == -9
            assert all(f.kind == "unfinished" for f in check(store).findings)
        assert kills
        last = finish(spawn(*command))
        assert last.code == 0 or "No document" in last.err, last.err
        assert check(store).findings == []
        assert texts_in(store.backend) == KEPT


def test_beside_others_that_forget_and_write(tmp_path: Path) -> None:
    """Two processes that write and forget the same documents, and a third that verifies."""
    uri = f"faiss:{tmp_path}/beside"
    with Datastore.open_or_create(uri, manifest(), "float32") as store:
        write(store.backend, KEPT, source="kept")
        command = [sys.executable, "-W", "error", "-m", "tests.changing", "6", uri]
        both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
        while any(process.poll() is None for process in both):
            assert [f for f in check(store).findings if f.kind != "unfinished"] == []
        assert [process.wait() for process in both] == [0, 0]
        assert check(store).findings == []
        left = texts_in(store.backend)
        assert set(KEPT) <= set(left) <= {*KEPT, *(f"round{i}" for i in range(6))}
