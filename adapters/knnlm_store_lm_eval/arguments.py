"""The model arguments of `knnlm`: which are ours, which the harness's."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any, Self

from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError

_OURS = ("store", "k", "temperature", "lmbda", "lambda")
_EXAMPLE = "pretrained=MODEL,store=faiss:stores/law,k=1024"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the user said of the datastore and its mixture; None where nothing was said."""

    store: str | Datastore
    k: int | None = None
    temperature: float | None = None
    lmbda: float | None = None

    def __post_init__(self) -> None:
        if self.k is not None and (not isinstance(self.k, int) or isinstance(self.k, bool)):
            raise UsageError(f"k must be a whole number, not {self.k!r}.", hint="Try k=1024.")
        for name in ("temperature", "lmbda"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int | float) or isinstance(value, bool)
            ):
                raise UsageError(
                    f"{name} must be a number, not {value!r}.",
                    hint="Leave it out, and the default is taken.",
                )

    @classmethod
    def split(
        cls, arguments: dict[str, Any], harness: type, *, loaded: bool
    ) -> tuple[Self, dict[str, Any]]:
        """Take ours out of the arguments; gives the rest, which is for the class of the harness.

        loaded: the model is there already, so that nothing is left to take an argument that the
        harness does not know. Else such a one is for `from_pretrained`, which refuses what it
        does not know either; what looks like a slip of ours is refused here. Raises UsageError.
        """
        ours = {name: arguments[name] for name in _OURS if name in arguments}
        rest = {name: value for name, value in arguments.items() if name not in _OURS}
        known = set(inspect.signature(harness).parameters)
        for name in sorted(set(rest) - known):
            meant = difflib.get_close_matches(name, _OURS, n=1)
            if meant or loaded:
                raise UsageError(
                    f"There is no model argument {name!r}.",
                    hint=f"Do you mean {meant[0]!r}?" if meant else f"Write {_EXAMPLE}.",
                )
        if "lambda" in ours:  # Python cannot spell it, the command line can
            if "lmbda" in ours:
                raise UsageError("lambda and lmbda are one argument.", hint="Give one of them.")
            ours["lmbda"] = ours.pop("lambda")
        if not isinstance(ours.get("store"), str | Datastore):
            raise UsageError(
                "The model knnlm needs a datastore.", hint=f"Add --model_args {_EXAMPLE}"
            )
        return cls(**ours), rest

    def open(self) -> tuple[Datastore, bool]:
        """Open the datastore; tells whether it was opened here."""
        if isinstance(self.store, Datastore):
            return self.store, False
        return Datastore.open(self.store), True
