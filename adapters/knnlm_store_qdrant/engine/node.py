"""A folder of collections and their aliases, of which one process at a time has the use.

The folder is made and marked by the first write; until then there is simply nothing. Reading
changes nothing in it. Each collection lies in `collections/`, in a folder whose name is drawn, not
taken from the user.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import IO, Any

from qdrant_client.http import models

from knnlm_store_qdrant.engine import folder
from knnlm_store_qdrant.engine.collection import Collection
from knnlm_store_qdrant.engine.files import Space, read_json, write_json
from knnlm_store_qdrant.engine.refusal import Refused, engine, failed, no_collection, wrong
from knnlm_store_qdrant.engine.settings import Settings

_COLLECTIONS, _ALIASES = "collections", "aliases.json"
_TICK_SECONDS = 0.1


class Node:
    """What the server serves. Threads share it.

    owner: the process to name to others who want the folder.
    """

    def __init__(self, root: Path, owner: int, reserve: int) -> None:
        self.root, self._owner = root, owner
        self._space = Space(root, reserve)
        self._changing = threading.RLock()
        self._lock: IO[str] | None = None
        self._swept = False
        self._collections: dict[str, Collection] = {}
        self._aliases: dict[str, str] = {}
        self._stopping = threading.Event()
        self._keepers = [
            self._keeper(Collection.tidy),
            # in turns, for both put other files in the place of a collection's
            self._keeper(Collection.rewrite_if_wanted, Collection.build_if_due),
        ]
        self._attach()

    # -- names ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        self._attach()
        return sorted(self._collections)

    def aliases(self, name: str = "") -> list[dict[str, str]]:
        """List the aliases, of one collection if named."""
        if name:
            self.get(name)
        self._attach()
        return [
            {"alias_name": alias, "collection_name": target}
            for alias, target in sorted(self._aliases.items())
            if name in ("", target)
        ]

    def get(self, name: str, *, write: bool = False) -> Collection:
        """Find a collection by its name or an alias; raises Refused."""
        self._attach()
        if write:
            self._sweep()
        found = self._collections.get(self._aliases.get(name, name))
        if found is None:
            raise no_collection(name)
        return found

    def exists(self, name: str) -> bool:
        """Whether there is a collection under this name or alias."""
        self._attach()
        return self._aliases.get(name, name) in self._collections

    # -- changes -------------------------------------------------------------------------------

    def create(self, name: str, settings: Settings) -> None:
        """Make a collection; raises Refused."""
        if not 1 <= len(name) <= 255:
            raise Refused(422, "Validation error: collection names have 1 to 255 characters")
        with self._changing:
            self._attach(make=True)
            if name in self._collections:
                raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
            if name in self._aliases:
                raise wrong(
                    f"Can't create collection with name {name}. "
                    "Alias with the same name already exists"
                )
            self._space.check(0)
            self._sweep()
            place = self.root / _COLLECTIONS / folder.new_name(name)
            try:
                self._collections[name] = Collection.make(place, self._space, name, settings)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise

    def drop(self, name: str) -> bool:
        """Remove a collection with its aliases; False if none has this very name."""
        with self._changing:
            self._attach()
            if name not in self._collections:
                return False
            self._collections[name].drop()
            del self._collections[name]
            self._keep_aliases({a: t for a, t in self._aliases.items() if t != name})
            return True

    def change_aliases(self, actions: list[models.AliasOperations]) -> None:
        """Do all of the actions, or raise Refused and do none."""
        with self._changing:
            self._attach()
            aliases = dict(self._aliases)
            for action in actions:
                self._change_alias(aliases, action)
            self._keep_aliases(aliases)

    def _change_alias(self, aliases: dict[str, str], action: models.AliasOperations) -> None:
        if isinstance(action, models.DeleteAliasOperation):
            aliases.pop(action.delete_alias.alias_name, None)
        elif isinstance(action, models.CreateAliasOperation):
            target = action.create_alias.collection_name
            if target not in self._collections:
                raise no_collection(target)
            aliases[self._free(action.create_alias.alias_name)] = target
        else:
            old = action.rename_alias.old_alias_name
            if old not in aliases:
                raise Refused(404, f"Not found: Alias {old} does not exists!")
            aliases[self._free(action.rename_alias.new_alias_name)] = aliases.pop(old)

    def _free(self, alias: str) -> str:
        if alias in self._collections:
            raise Refused(409, f"Wrong input: Collection `{alias}` already exists!")
        return alias

    def _keep_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self._aliases:
            write_json(self.root / _ALIASES, aliases)
            self._aliases = aliases

    # -- folder --------------------------------------------------------------------------------

    def _attach(self, *, make: bool = False) -> None:
        """Take the folder if it is ours (make it so if need be) and read what it holds."""
        if self._lock is not None or not (folder.is_ours(self.root) or make):
            return
        with self._changing:
            if self._lock is not None:
                return
            self.root.mkdir(parents=True, exist_ok=True)
            lock = folder.locked(self.root, self._owner)
            try:
                self._read()
            except BaseException:
                lock.close()
                raise
            self._lock = lock

    def _read(self) -> None:
        place = self.root / _COLLECTIONS
        try:
            found = [Collection.read(path, self._space) for path in folder.whole(place)]
            aliases = read_json(self.root / _ALIASES) if (self.root / _ALIASES).exists() else {}
        except (ValueError, KeyError) as error:
            raise failed(f"{place} holds what cannot be read: {error}") from error
        self._collections = {each.name: each for each in found}
        self._aliases = {a: t for a, t in aliases.items() if t in self._collections}

    def _sweep(self) -> None:
        """Remove, before the first write, what a crash left."""
        if self._swept or self._lock is None:
            return
        with self._changing:  # in which collections are made and dropped
            folder.sweep(self.root / _COLLECTIONS)
            self._swept = True

    def start(self) -> None:
        """Begin to flush and to build indexes in the background."""
        for keeper in self._keepers:
            keeper.start()

    def close(self) -> None:
        """End the background work, flush everything and let the folder go."""
        self._stopping.set()
        for collection in list(self._collections.values()):
            collection.close()
        for keeper in self._keepers:
            if keeper.ident is not None:
                keeper.join()
        if self._lock is not None:
            self._lock.close()

    def _keeper(self, *works: Callable[[Collection], Any]) -> threading.Thread:
        def keep() -> None:
            while not self._stopping.wait(_TICK_SECONDS):
                for collection, work in product(list(self._collections.values()), works):
                    _tend(collection, work)

        return threading.Thread(target=keep, daemon=True)


def _tend(collection: Collection, work: Callable[[Collection], Any]) -> None:
    """Do a keeper's work on a collection; the others are tended whatever becomes of it."""
    try:
        with engine():
            work(collection)
    except Refused:
        pass  # dropped meanwhile, or told to the next writer
    except BaseException as error:  # noqa: BLE001  a panic of the engine is none of Exception
        collection.fail(f"{type(error).__name__}: {error}")
