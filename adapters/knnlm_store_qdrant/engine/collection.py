"""One collection: a shard of the engine, what is known about it, and its next index.

Reads take the shard and ask it; the engine itself is safe for threads. Writes take turns, so that
the copy an index is built from is whole, and what is written meanwhile can be written to it too.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from knnlm_store_qdrant.engine import settings as kept
from knnlm_store_qdrant.engine.build import build
from knnlm_store_qdrant.engine.files import Space, copy_tree, read_json, size_of, write_json
from knnlm_store_qdrant.engine.refusal import Refused, engine, failed, no_collection
from knnlm_store_qdrant.engine.rewriting import Wishes
from knnlm_store_qdrant.engine.settings import Settings

ABOUT = "collection.json"
FILES = re.compile("files-[0-9a-f]{12}")
"""Names of the folders that the engine's own files are in."""

_FLUSH_SECONDS = 5.0
_QUIET_SECONDS = 1.0
_LOG_POINTS = 100_000
_LAST_ROUND = 8
_LOADING_BYTES = 8 << 20  # that the engine may take when it opens files, even to read them


class Collection:
    """A collection in a folder of its own. Threads may share an object."""

    def __init__(
        self, folder: Path, space: Space, name: str, settings: Settings, files: str
    ) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.wishes = Wishes()
        self._space = space
        self._files = files
        self._shard: edge.EdgeShard | None = None
        self._writing = threading.RLock()
        self._gone = False
        self._written = self._flushed = time.monotonic()
        self._dirty = self._swept = False
        # Of index building:
        self._log: list[edge.UpdateOperation] | None = None
        self._logged = 0
        self._churn = 0
        self._asked = False
        self._settled = False
        self._failure = ""

    @classmethod
    def make(cls, folder: Path, space: Space, name: str, settings: Settings) -> Collection:
        """Make a new one; its folder counts from the moment that its description is there."""
        made = cls(folder, space, name, settings, _new_name())
        folder.mkdir(parents=True)
        with engine():
            made._shard = edge.EdgeShard.create(
                str(folder / made._files), kept.configuration(settings)
            )
        made._describe(made._files, settings)
        return made

    @classmethod
    def read(cls, folder: Path, space: Space) -> Collection:
        """Read the description of one; raises OSError, ValueError, KeyError."""
        about = read_json(folder / ABOUT)
        settings = Settings.model_validate(about["settings"])
        return cls(folder, space, about["name"], settings, about["files"])

    @property
    def shard(self) -> edge.EdgeShard:
        """The engine's object, loaded on first use."""
        shard = self._shard
        if shard is not None:
            return shard
        with self._writing:
            if self._gone:
                raise no_collection(self.name)
            if self._shard is None:
                self._space.require(_LOADING_BYTES)
                self._shard = self._loaded(self._files)
            return self._shard

    def write(self, operation: edge.UpdateOperation, upserted: int = 0) -> None:
        """Apply an operation that upserts so many points; durable against a kill on return."""
        with self._writing:
            shard = self.shard
            self._space.check(0)
            self._sweep_once()
            before = shard.info().points_count
            self._written, self._dirty, self._settled = time.monotonic(), True, False
            try:
                with engine():
                    shard.update(operation)
            except BaseException:
                self._log = None  # who knows how far it came: the copy must not go on without it
                raise
            self._churn += max(0, upserted + before - shard.info().points_count)
            self._remember(operation, upserted)

    def _remember(self, operation: edge.UpdateOperation, upserted: int) -> None:
        """Keep an operation for the copy in work, unless they become too many."""
        if self._log is not None:
            self._log.append(operation)
            self._logged += upserted
            if self._logged > _LOG_POINTS:
                self._log = None

    def change(self, settings: Settings, *, rebuild: bool) -> None:
        """Put new settings in force; `rebuild` has the index follow them."""
        with self._writing:
            self._describe(self._files, settings)
            self.settings = settings
            self._asked = self._asked or rebuild
            self._settled, self._failure, self._log = False, "", None
            self._written = -_QUIET_SECONDS  # whoever asks for it waits for it

    def info(self) -> dict[str, Any]:
        """Tell the state in the shape of `GET /collections/NAME`."""
        with engine():
            info = self.shard.info()
        error = self._failure
        busy = self._log is not None or self._wants_build(info)
        return {
            "status": "red" if error else "yellow" if busy else "green",
            "optimizer_status": {"error": error} if error else "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "config": kept.described(self.settings),
            "payload_schema": {
                name: {"data_type": str(each.data_type).split(".")[-1].lower()}
                | {"points": each.points}
                for name, each in info.payload_schema.items()
            },
        }

    def fail(self, message: str) -> None:
        """Tell of a failure in the background until settings are changed; build nothing more."""
        self._failure = message

    def tidy(self) -> None:
        """Flush if it is time, so that the log of writes stays short."""
        if self._dirty and time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring what was written from the log into its files."""
        with self._writing:
            if self._shard is not None and not self._gone:
                self._flushed, self._dirty = time.monotonic(), False
                with engine():
                    self._shard.flush()

    def close(self) -> None:
        """Flush and let go; the object is not used afterwards."""
        with self._writing:
            self._log = None
            self.flush()
            self._gone = True
            if self._shard is not None:
                self._shard.close()
                self._shard = None

    def drop(self) -> None:
        """Remove it from disk; searches in flight still end."""
        with self._writing:
            if self._gone:
                raise no_collection(self.name)
            (self.folder / ABOUT).unlink()
            self._gone, self._log, self._shard = True, None, None
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- index building ------------------------------------------------------------------------

    def build_if_due(self) -> None:
        """Build an index if the size or the changes ask for it and writers are quiet."""
        if self._shard is None or time.monotonic() - self._written < _QUIET_SECONDS:
            return
        with self._writing:
            if self._gone or not self._wants_build(self.shard.info()):
                return
            self._sweep_once()
            debt = self._asked, self._churn
            self._settled, self._asked, self._churn = True, False, 0  # until the next write
            self._log, self._logged = [], 0
        files, done = _new_name(), False
        try:
            with engine():
                done = self._built(files)
        except Refused as error:
            self.fail(str(error))
        finally:
            if not done:
                self._settled, self._asked = False, self._asked or debt[0]
                self._churn += debt[1]
            self._sweep()
            self._log = None

    def rewrite_if_wanted(self) -> None:
        """Put files without deleted points in the place of these, if somebody waits for it."""
        self.wishes.grant(self._rewrite)

    def _rewrite(self) -> None:
        with self._writing:
            self.shard.flush()  # which opens it, if nobody did
            self._sweep_once()
            self._log, self._logged, self._churn = [], 0, 0
        try:
            done = self._built(_new_name(), anew=True)
        finally:
            self._sweep()
            self._log = None
        if not done:
            raise Refused(503, "Service unavailable: written to or changed faster than compacted")
        if self._old_files():
            raise failed("files from before compacting cannot be removed")

    def _built(self, files: str, *, anew: bool = False) -> bool:
        """Build an index on a copy and take that over; False if the copy was overtaken.

        anew: take over new files, filled from the copy, whether there is an index to build or not.
        """
        source = self.folder / _new_name() if anew else None
        with self._writing:
            if self._gone:
                return False
            self.flush()
            self._space.check((3 if anew else 2) * size_of(self.folder / self._files))
            copy_tree(self.folder / self._files, source or self.folder / files)
        configuration = kept.configuration(self.settings)
        built = build(self.folder / files, configuration, lambda: self._log is not None, source)
        overtakes = built or (anew and built is False)
        return self._taken_over(files) if overtakes else built is False

    def _taken_over(self, files: str) -> bool:
        """Bring the copy up to date and put it in the place of the old files."""
        ready = self._loaded(files)
        while True:
            with self._writing:
                if self._gone or self._log is None:
                    return False
                missed, self._log = self._log, []
                if len(missed) <= _LAST_ROUND:
                    _replay(missed, ready)
                    ready.flush()
                    self._describe(files, self.settings)
                    self._files, self._shard = files, ready
                    return True
            _replay(missed, ready)

    def _wants_build(self, info: edge.ShardInfo) -> bool:
        if self._settled or self._failure:
            return False
        threshold = kept.indexing_threshold(self.settings) * 1024
        plain = (info.points_count - info.indexed_vectors_count) * kept.vector_bytes(self.settings)
        worn = self._churn >= max(1000, info.points_count // 5)
        return self._asked or worn or 0 < threshold <= plain

    def _loaded(self, files: str) -> edge.EdgeShard:
        path = self.folder / files
        with engine():
            return edge.EdgeShard.load(str(path), kept.configuration(self.settings))

    def _describe(self, files: str, settings: Settings) -> None:
        plain = settings.model_dump(mode="json", exclude_unset=True)
        write_json(self.folder / ABOUT, {"name": self.name, "files": files, "settings": plain})

    def _sweep_once(self) -> None:
        """Remove, before the first change, what an earlier process left; while none is built."""
        if not self._swept:
            self._sweep()
            self._swept = True

    def _sweep(self) -> None:
        """Remove files of an earlier or unfinished index; nothing if it was dropped meanwhile."""
        for path in self._old_files():
            shutil.rmtree(path, ignore_errors=True)

    def _old_files(self) -> list[Path]:
        found = self.folder.glob("files-*")
        return [p for p in found if FILES.fullmatch(p.name) and p.name != self._files]


def _new_name() -> str:
    return f"files-{uuid.uuid4().hex[:12]}"


def _replay(operations: list[edge.UpdateOperation], shard: edge.EdgeShard) -> None:
    for operation in operations:
        shard.update(operation)
