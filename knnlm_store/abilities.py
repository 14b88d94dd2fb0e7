"""What some backends can do besides, found by `isinstance`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from knnlm_store.values import Location


class Indexed(ABC):
    """Ability of a backend that searches through an index which must be built at some size."""

    @abstractmethod
    def build_index(self) -> str | None:
        """Build the index if the size asks for it and save it; says in a sentence what was done.

        None if nothing was. Searches are right before, during and after.
        """

    @abstractmethod
    def describe_index(self) -> str:
        """Say in a few words how searches are answered, for example `exact` or `IVF512`."""


class Compactable(ABC):
    """Ability of a backend in which deleted entries take space until it is compacted."""

    @abstractmethod
    def compact(self) -> None:
        """Drop what was deleted from disk, and rebuild the index if there is one.

        No byte of what was deleted or replaced before is left in the datastore's files then. Others
        may read and write meanwhile.
        """


class Aliased(ABC):
    """Ability of a backend in which a second name can stand for a datastore, and be moved.

    An alias is resolved when it is connected to: objects stay with what it meant then.
    `names` leaves aliases out, and `drop` refuses to go through one (UsageError).
    """

    @abstractmethod
    def set_alias(self, alias: str) -> None:
        """Have `alias`, at the same root, stand for this datastore from now on, in one step.

        Raises StoreExists if a datastore has that name.
        """

    @classmethod
    @abstractmethod
    def remove_alias(cls, location: Location) -> None:
        """Remove the alias at `location`, and nothing else. Raises StoreNotFound."""

    @classmethod
    @abstractmethod
    def aliases(cls, location: Location) -> dict[str, str]:
        """Aliases at `location.root`, each with the name of its datastore."""
