"""Having the embedded engine make collections' files anew, without what was deleted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from uuid import uuid4

from pydantic import BaseModel
from qdrant_client import models

from knnlm_store_qdrant.server import Server

_SOON, _LATER = 0.05, 2.0  # seconds between looks


class _Reply(BaseModel):
    """What the engine answers; for its own request the client has no model."""

    result: models.UpdateResult


def compact(server: Server, collections: Iterable[str]) -> None:
    """Return when nothing that was deleted before is left in the files of the collections.

    Takes as long as they are large; whoever reads and writes goes on meanwhile. Raises
    StorageFull, or BackendUnavailable where more is written than the new files can keep up with.
    """
    wish, waiting, pause = uuid4().hex, list(collections), _SOON
    while waiting := [each for each in waiting if not _is_granted(server, each, wish)]:
        time.sleep(pause)
        pause = min(1.2 * pause, _LATER)


def _is_granted(server: Server, collection: str, wish: str) -> bool:
    with server.calling() as client:
        reply = client.http.client.request(
            type_=_Reply,
            method="POST",
            url="/collections/{name}/compact",
            path_params={"name": collection},
            params={"wish": wish},
        )
    return reply.result.status == models.UpdateStatus.COMPLETED
