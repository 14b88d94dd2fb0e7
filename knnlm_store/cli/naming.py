"""Which datastores a command means, by URI or domain, and the settings that come with a domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knnlm_store.cli import common

if TYPE_CHECKING:
    from knnlm_store.domains import Domain
    from knnlm_store.values import Location


class Named(NamedTuple):
    """Datastores, and how they are to be mixed in: as the user says, else as the domain does."""

    where: list[Location]
    k: int | None
    temperature: float | None
    lmbda: float | None
    policy: Any
    blend: str | None


def named(
    store: list[str] | None,
    backend: str | None,
    name: str | None,
    url: str | None,
    *,
    domain: str | None,
    config: Path | None,
    k: int | None,
    temperature: float | None,
    lmbda: float | None,
    policy: str | list[str] | None,
    blend: str | None,
    fitted: Sequence[str] | None,
) -> Named:
    """Settle which datastores are meant, and fill in what the user did not say from a domain.

    policy: given back as the kind it came as; a domain's is text. fitted: texts to which a mixture
    is fitted, which leaves the domain's out. Raises UsageError.
    """
    from knnlm_store.domains import Domains, is_name

    if domain is not None:
        common.require_alone(domain, store, backend, name)
        store = [domain]
    own: Domain | None = None
    if store and (domain is not None or any(map(is_name, store))):
        domains = Domains.read(config)
        if len(store) == 1:
            own = domains.named(store[0])
        store = _uris(domains, store)
    where = common.locations(store, backend, name, url)
    said = Named(where, k, temperature, lmbda, policy, blend)
    return said if own is None or fitted else _filled(said, own)


def _uris(domains: Any, store: list[str]) -> list[str]:
    """Put the datastores of domains in the place of their names."""
    from knnlm_store.domains import is_name

    if len(store) == 1:
        return [str(where) for where in domains.named(store[0]).stores]
    each = [domains.named(s).among_others() if is_name(s) else (s,) for s in store]
    return [str(where) for some in each for where in some]


def _filled(said: Named, domain: Domain) -> Named:
    """Take from the domain what the user did not say; lambda and policy go together."""
    settings = dict(domain.settings)
    if said.lmbda is not None or said.policy:
        settings.pop("lmbda", None)
        settings.pop("policy", None)
    own = {name: value for name, value in settings.items() if getattr(said, name) is None}
    if domain.blend is not None and said.blend is None:
        own["blend"] = ",".join(map(repr, domain.blend))
    return said._replace(**own)
