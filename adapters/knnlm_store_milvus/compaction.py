"""Taking what was deleted out of a file of Milvus Lite at once.

Milvus Lite merges the files of a collection by itself, but only once there are four of a size, and
it keeps its lists of deleted ids for good; the call of its server that should compact does nothing.
So the server's own merge is run here on all files of a collection, after which no list is needed.
That happens in this process, as all of Milvus Lite does, under the server's lock, for which reading
and writing wait. Each step is one change of the manifest; files that it does not name, should this
process die in between, are removed when the collection is opened next.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knnlm_store.errors import StoreError
from knnlm_store_milvus import lite
from knnlm_store_milvus.failures import full


def compact(file: Path, collection: str) -> None:
    """Return when nothing that was deleted before is left in the files of a collection."""
    with lite.write_lock(file), _mapped(file):
        held = _engine(file).get_collection(collection)
        held.flush()
        held._wait_for_bg()  # which may be writing an index of a file that goes
        with held._maintenance_lock:
            for partition in held._manifest.list_partitions():
                _merge(held, partition)
            _remove_lists(held)
            held._refresh_segment_cache()
            held._cleanup_orphan_index_files()
        held._ensure_loaded_segments_indexed()


def _engine(file: Path) -> Any:
    """What the server of a file that is open serves."""
    from milvus_lite.server_manager import server_manager_instance as manager

    return manager._servers[str(file)][1]


def _merge(held: Any, partition: str) -> None:
    """Write the rows that are left into new files, and remove the old ones."""
    files = held._manifest.get_data_files(partition)
    if len(files) > 1 or (files and len(held._delta_index)):
        folder = str(_folder(held, partition))
        held._compaction_mgr._compact_files(
            partition, folder, files, held._manifest, held._delta_index
        )


def _remove_lists(held: Any) -> None:
    """Remove the lists of what is deleted: no file has a row of theirs any more."""
    manifest, lists = held._manifest, held._manifest.get_all_delta_files()
    held._delta_index.gc_below(sys.maxsize)
    for partition, files in lists.items():
        manifest.remove_delta_files(partition, files)
    manifest.save()  # in any case: it keeps the one before, which must not name what is gone
    for partition, files in lists.items():
        for each in files:
            (_folder(held, partition) / each).unlink(missing_ok=True)


def _folder(held: Any, partition: str) -> Path:
    return Path(held.data_dir) / "partitions" / partition


@contextmanager
def _mapped(file: Path) -> Iterator[None]:
    """Raise errors of the engine as ours; it has no call for this, so newer ones may differ."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(str(file), "no space left on device") from error
        raise StoreError(
            f"{file} cannot be compacted ({error.strerror}).",
            hint="Check that the folder is whole and writable, then run this again.",
        ) from error
    except (AttributeError, TypeError) as error:
        raise StoreError(
            f"This version of Milvus Lite cannot be compacted ({error}).",
            hint="Copy the datastore into another file instead: knnlm-store copy STORE OTHER",
        ) from error
