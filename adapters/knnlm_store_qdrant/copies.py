"""Reading after writing, where a cluster keeps several copies of a collection.

A write is acknowledged by all copies (`write_consistency_factor`, see options) and goes through
one leader (`ORDERING`), so that all have the same writes in the same order. A read then asks all
copies that there are and takes what most of them say. Not `all`, which takes what all of them
say: it asks as many, and one copy that lost a point would hide it.

If a copy is down, such a read is refused. What is left has every write that was acknowledged, for
nothing is while one is down, and so one copy is asked: a datastore can be read without a node.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from qdrant_client import QdrantClient, models

from knnlm_store.errors import BackendUnavailable
from knnlm_store_qdrant.server import Server

_T = TypeVar("_T")
Page: TypeAlias = tuple[list[models.Record], models.ExtendedPointId | None]
Question: TypeAlias = Callable[[QdrantClient, models.ReadConsistencyType | None], _T]

ORDERING = models.WriteOrdering.STRONG
AGREED = models.ReadConsistencyType.MAJORITY

_COPY_DOWN = re.compile(r"enough active replicas|read operations? failed", re.IGNORECASE)


def ask(
    server: Server,
    question: Question[_T],
    until: float | None = None,
    *,
    agreed: bool = True,
) -> _T:
    """Ask a question, which gets the consistency to ask with; None leaves it to the server.

    until: when it must be answered, by time.monotonic(). agreed: by most copies, not by any one.
    """
    if agreed:
        try:
            with server.calling(until) as client:
                return question(client, AGREED)
        except BackendUnavailable as error:
            if not _COPY_DOWN.search(str(error)):
                raise
    with server.calling(until) as client:
        return question(client, None)
