"""Milvus Lite on a full disk, and killed while it writes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from knnlm_store.datastore import Datastore
from knnlm_store.errors import StorageFull
from knnlm_store.models import LanguageModel, load
from tests.cli_support import python
from tests.faults_servers import fill, small_disk
from tests.faults_support import AFTER, BEFORE, assert_as, ingested, quiet_run
from tests.ingest_support import held


# of a file that Milvus Lite cannot close then
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_full_disk(tmp_path: Path, shared_model: LanguageModel) -> None:
    """Nothing that was committed is lost, and it goes on once there is space."""
    with small_disk(tmp_path, "16m") as disk:
        uri = f"milvus:{disk}/file.db/law"
        ingested(shared_model, uri, BEFORE)
        ballast = fill(disk, leave=4096)
        with pytest.raises(StorageFull) as caught:
            ingested(shared_model, uri, AFTER)
        said = f"Milvus at {disk}/file.db has no room left ([Errno 28] No space left on device)."
        assert str(caught.value) == said
        assert caught.value.hint == "Free some space or raise its quota, then run this again."
        ballast.unlink()
        with Datastore.open(uri) as store:
            assert np.isin(held(quiet_run(shared_model, BEFORE)).ids, held(store).ids).all()
        ingested(shared_model, uri, AFTER)
        assert_as(uri, quiet_run(shared_model, BEFORE, AFTER))


KILLED = """
import os, signal, sys
import pytest
from knnlm_store.generation import KnnLM
from knnlm_store.models import load
from knnlm_store_milvus import MilvusBackend
from tests.faults_support import AFTER, at_calls, hasty, ingested
patcher = pytest.MonkeyPatch()
hasty(patcher)
at_calls(patcher, MilvusBackend, "_upsert", {4: lambda: os.kill(os.getpid(), signal.SIGKILL)})
ingested(load(sys.argv[1], window=32), sys.argv[2], AFTER)
"""


def test_killed_while_it_writes_to_a_file(tmp_path: Path, saved_model: Path) -> None:
    """The server of a file dies with the process; the next one finds the file whole and goes on."""
    uri, lm = f"milvus:{tmp_path}/file.db/law", load(str(saved_model), window=32)
    ingested(lm, uri, BEFORE)
    root = Path(__file__).parent.parent
    assert python(KILLED, saved_model, uri, cwd=root).code == -signal.SIGKILL
    ingested(lm, uri, AFTER)
    assert_as(uri, quiet_run(lm, BEFORE, AFTER))
