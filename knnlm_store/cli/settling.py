"""How a datastore or a pool is mixed in: what the user says, and the rest as it suits the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from knnlm_store.errors import UsageError

if TYPE_CHECKING:
    from knnlm_store.calibration import Settled
    from knnlm_store.mixture import Mixture
    from knnlm_store.several import Pool, Searchable

    Settle: TypeAlias = Callable[..., Settled]

ALL = "all"
"""Stands for every policy that can be used."""


class Part(NamedTuple):
    """What is searched, how it is mixed in, and where that came from."""

    source: Searchable
    settled: Settled

    @property
    def mixture(self) -> Mixture:
        """How it is mixed in."""
        return self.settled.mixture

    def told(self) -> Iterator[str]:
        """Say what was chosen for the user."""
        from knnlm_store.several import Pool

        name, chosen = self.mixture.policy.name, f"{self.mixture.temperature:.4g}"
        if self.settled.as_tuned:
            yield self.settled.as_tuned
        elif self.mixture.is_plain:
            return
        elif self.settled.temperature_from_data and isinstance(self.source, Pool):
            yield (
                f"pooled, not tuned: {name} policy, temperature {chosen}, the median of what each "
                "datastore's distances give"
            )
        elif self.settled.temperature_from_data:
            yield (
                f"not tuned: {name} policy, temperature {chosen} derived from the datastore's "
                "distances; knnlm-store tune fits them"
            )
        if self.settled.note:
            yield f"warning: {self.settled.note}"

    def settings(self) -> dict[str, Any]:
        """Give the mixture's settings as a JSON-able object."""
        return self.settled.settings()


def one_policy(policy: str | None, done: str = "generated") -> list[str] | None:
    """Give the policy where only one can be used. Raises UsageError for all of them.

    done: what is done to text, for the message.
    """
    if policy == ALL:
        raise UsageError(
            f"Text is {done} by one policy, not by all.",
            hint="knnlm-store eval --policy all compares them.",
        )
    return None if policy is None else [policy]


def settle_each(settle: Settle, names: list[str], lmbda: float | None) -> list[Settled]:
    """Settle a mixture for each policy that is named; lambda is meant for the fixed one."""
    from knnlm_store.calibration import FITTED, POLICIES

    every = ALL in names
    if every:
        names = list(POLICIES)
    if len(names) < 2:
        return [settle(lmbda=lmbda, policy=names[0] if names else None)]
    settled = []
    for name in names:
        try:
            mine = lmbda if name == "fixed" or "fixed" not in names else None
            settled.append(settle(lmbda=mine, policy=name))
        except UsageError:
            if not (every and name in FITTED):  # nobody fitted it here
                raise
    return settled


def settler(source: Searchable, k: int | None, temperature: float | None) -> Settle:
    """Give what settles a policy and a lambda, each of which may be None."""
    from knnlm_store.calibration import settle
    from knnlm_store.several import Pool

    if isinstance(source, Pool):
        return partial(_settle_pool, source, k=k, temperature=temperature)
    return partial(settle, source, k=k, temperature=temperature)


def _settle_pool(
    pool: Pool,
    *,
    k: int | None,
    temperature: float | None,
    lmbda: float | None,
    policy: str | None,
) -> Settled:
    """Do as `mixture_for` does, but for what the user says."""
    from knnlm_store.calibration import DEFAULT_K, FITTED, Settled, settle

    if policy in FITTED:
        raise UsageError(
            f"Datastores that are pooled have no {policy} policy: it is fitted to one alone.",
            hint="Use --policy ratio, or --blend-from TEXT, in which each keeps its own.",
        )
    # a calibration has its own k: naming one leaves it out
    said: dict[str, Any] = {"k": DEFAULT_K if k is None else k, "lmbda": lmbda, "policy": policy}
    each = [settle(store, temperature=temperature, **said) for store in pool.stores]
    mixture = replace(each[0].mixture, temperature=median(one.mixture.temperature for one in each))
    note = "Calibrations are not used: each is of one datastore alone."
    return Settled(
        mixture,
        temperature_from_data=temperature is None,
        note=note if any(one.note for one in each) else None,
    )
