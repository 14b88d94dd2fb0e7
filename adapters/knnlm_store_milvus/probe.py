"""Whether a server keeps and searches float16 keys right, found out by doing it.

Milvus 2.3 takes such keys but searches small batches for something else than was asked.
"""

from __future__ import annotations

import uuid

import numpy as np

from knnlm_store.errors import BackendUnavailable, StoreError, UsageError
from knnlm_store.values import Entries, Freshness, Spec
from knnlm_store_milvus.building import wait_loaded
from knnlm_store_milvus.connection import Connection
from knnlm_store_milvus.entries import EntryTable, fields
from knnlm_store_milvus.indexes import Plan

_DIMENSION = 8  # Milvus 2.3.5 errs where queries have few bytes
_ROUNDS = 5


def check_float16(connection: Connection) -> None:
    """Raise UsageError unless the server searches float16 keys right; takes some seconds."""
    name = f"_knnlm_probe_{uuid.uuid4().hex}"
    plan = Plan("FLAT", {})
    try:
        connection.create(name, fields(Spec(_DIMENSION, "float16")), plan.mark("probe"), 1)
        connection.ready(name, "key", plan.index(), 1)
        wait_loaded(connection, name)
        collection = connection.describe(name)
        right = collection is not None and _finds_itself(EntryTable(connection, collection))
    except BackendUnavailable:
        raise
    except StoreError as error:
        raise UsageError(
            f"This Milvus does not take float16 keys: {error}", hint="Set the storage to float32."
        ) from error
    finally:
        connection.drop(name)
    if not right:
        raise UsageError(
            "This Milvus takes float16 keys but searches them wrongly.",
            hint="Set the storage to float32, or update Milvus.",
        )


def _finds_itself(table: EntryTable) -> bool:
    """Whether each of some keys, asked for alone, is its own nearest neighbour."""
    halves = np.random.default_rng(0).normal(size=(16, _DIMENSION)).astype(np.float16)
    keys = halves.astype(np.float32)
    numbers = np.arange(len(keys), dtype=np.int64)
    table.upsert(Entries(keys, numbers, np.zeros_like(numbers), numbers))
    freshness = Freshness.LATEST  # the first search only: it saw all that was written
    for _ in range(_ROUNDS):
        for i, key in enumerate(keys):
            found = table.search(key[None], 1, None, freshness, None, with_keys=False)
            freshness = Freshness.FAST
            if found.tokens.ravel().tolist() != [i] or abs(float(found.distances[0, 0])) > 1e-3:
                return False
    return True
