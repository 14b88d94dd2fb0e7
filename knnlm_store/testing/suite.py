"""The suite: all its parts in one class."""

from __future__ import annotations

from typing import Any

from knnlm_store.testing.abilities import Abilities
from knnlm_store.testing.filtering import Filtering
from knnlm_store.testing.histories import Histories
from knnlm_store.testing.lifecycle import Lifecycle
from knnlm_store.testing.records import Records
from knnlm_store.testing.refusing import Refusing
from knnlm_store.testing.scanning import Scanning
from knnlm_store.testing.searching import Searching
from knnlm_store.testing.writing import Writing


class BackendSuite(
    Lifecycle,
    Writing,
    Refusing,
    Searching,
    Filtering,
    Scanning,
    Records,
    Histories,
    Abilities,
):
    """Every test of the contract; subclass it, set `adapter`, override `location`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.gaps:
            if not hasattr(cls, name.partition("[")[0]):
                raise TypeError(f"{cls.__name__}.gaps names {name}, which is no test of the suite.")
