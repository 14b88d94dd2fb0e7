"""Writing the data files anew without dead rows."""

from __future__ import annotations

import numpy as np

from knnlm_store_faiss.datafiles import TOKEN, Codec, DataFile, sync_folder
from knnlm_store_faiss.opened import Opened
from knnlm_store_faiss.snapshot import BLOCK_VALUES, Snapshot


def compact(store: Opened) -> None:
    """Drop dead rows from the data files, and freed pages from the ledger.

    The old files stay in force until the commit that names the new ones.
    """
    with store.writing() as (ledger, state):
        snapshot = Snapshot.read(store.folder, ledger, None)
        if snapshot.live_count < state.rows:
            _rewrite(store, snapshot, state.generation + 1)
            ledger.replace_segments(snapshot.segments.packed())
            ledger.set_rows(state.generation + 1, snapshot.live_count)
        else:
            _cut_tail(store, snapshot)
    with store.writing():
        pass  # every write removes what the state does not name: here, the old files
    store.writer().vacuum()


def _rewrite(store: Opened, snapshot: Snapshot, generation: int) -> None:
    """Write the live rows of `snapshot` into new files, in order."""
    keys, tokens = _files(store, generation)
    keys.create()
    tokens.create()
    rows = np.flatnonzero(snapshot.live)
    size = max(1, BLOCK_VALUES // store.spec.dimension)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        keys.append(start, snapshot.stored(part))
        tokens.append(start, snapshot.tokens(part).astype(TOKEN))
    sync_folder(store.folder)


def _cut_tail(store: Opened, snapshot: Snapshot) -> None:
    """Remove what a killed writer left behind the committed rows."""
    keys, tokens = _files(store, snapshot.state.generation)
    keys.append(snapshot.state.rows, np.empty(0, Codec(store.spec).dtype))
    tokens.append(snapshot.state.rows, np.empty(0, TOKEN))


def _files(store: Opened, generation: int) -> tuple[DataFile, DataFile]:
    return (
        DataFile.keys(store.folder, generation, store.spec),
        DataFile.tokens(store.folder, generation),
    )
