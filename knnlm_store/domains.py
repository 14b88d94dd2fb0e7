"""Named datastores: `knnlm.toml`, found by KNNLM_STORE_CONFIG, in the working folder or above it.

    [domains.law]
    store = "qdrant://localhost:6333/law"   # or stores = [...], which are pooled
    k = 512                                 # optional, as temperature, lmbda, policy and blend

The file is read anew at each look-up, so that a domain can be set to another datastore while
programs run. Paths are relative to the file's folder.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from knnlm_store import registry
from knnlm_store.errors import UsageError
from knnlm_store.values import Location

FILE = "knnlm.toml"
VARIABLE = "KNNLM_STORE_CONFIG"

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_POLICIES = ("fixed", "ratio", "bucketed", "learned")  # as in calibration.py, which brings in NumPy


@dataclass(frozen=True, slots=True)
class Domain:
    """A named datastore, or several, and how they are mixed in.

    stores: one; more are pooled, or blended. settings: those of k, temperature, lmbda and policy
    that the file says. blend: a weight for each of several stores, instead of a pool.
    """

    name: str
    stores: tuple[Location, ...]
    settings: Mapping[str, Any]
    blend: tuple[float, ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it stands for its datastores and no more."""
        return not self.settings and self.blend is None

    def among_others(self) -> tuple[Location, ...]:
        """Give the datastores to be pooled with others. Raises UsageError if it has settings."""
        if not self.is_plain:
            said = ", ".join([*self.settings, *([] if self.blend is None else ["blend"])])
            raise UsageError(
                f"The domain {self.name} has settings of its own ({said}), which do not hold "
                "where several datastores are named.",
                hint="Name its datastores instead: knnlm-store domains shows them.",
            )
        return self.stores

    def json(self) -> dict[str, Any]:
        """Give the domain as a JSON-able object."""
        blend = {} if self.blend is None else {"blend": list(self.blend)}
        return {"stores": [str(store) for store in self.stores], **self.settings, **blend}


def is_name(text: str) -> bool:
    """Whether a text is meant as a domain's name, not as a URI."""
    return ":" not in text


def check_name(name: str) -> None:
    """Raise UsageError unless a domain can have this name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a domain's name.", hint="Use letters, digits, - and _ alone."
        )


def find(config: str | Path | None = None) -> Path | None:
    """Find the file: as given, else by the environment, else in the working folder or above it.

    None if there is none; UsageError if one was named and is not there.
    """
    named = config or os.environ.get(VARIABLE) or None
    if named is not None:
        if not Path(named).is_file():
            raise UsageError(
                f"There is no file {named}.",
                hint=f"Make it with: knnlm-store domains set NAME STORE --config {named}",
            )
        return Path(named)
    here = Path.cwd()
    places = (folder / FILE for folder in (here, *here.parents))
    return next((path for path in places if path.is_file()), None)


@dataclass(frozen=True, slots=True)
class Domains:
    """The domains of a file, as it was read; path None where there is none."""

    path: Path | None
    domains: Mapping[str, Domain]

    @classmethod
    def read(cls, config: str | Path | None = None) -> Domains:
        """Read the file that `find` finds. Raises UsageError as `find` and `parse` do."""
        path = find(config)
        if path is None:
            return cls(None, {})
        try:
            return cls(path, parse(path.read_bytes(), path))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {error.strerror or error}.", hint="Check its permissions."
            ) from error

    def named(self, name: str) -> Domain:
        """Look a domain up. Raises UsageError for one that nobody set."""
        if name in self.domains:
            return self.domains[name]
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is neither a datastore nor a domain.",
                hint="Write BACKEND:PATH/NAME, for example faiss:stores/law, or a domain's name.",
            )
        setting = f"knnlm-store domains set {name} STORE"
        if self.path is None:
            raise UsageError(
                f"{name!r} is neither a datastore nor a domain: there is no {FILE} here or above.",
                hint=f"Write BACKEND:PATH/NAME, for example faiss:stores/law, or set it: {setting}",
            )
        there = f"It has: {', '.join(self.domains)}. " if self.domains else ""
        raise UsageError(
            f"{self.path} has no domain {name!r}.", hint=f"{there}Set it with: {setting}"
        )


def parse(text: bytes, path: Path) -> dict[str, Domain]:
    """Read the text of a file. Raises UsageError naming file, domain and key."""
    try:
        values = tomllib.loads(text.decode())
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {_line(error)}.", hint="Mend the file.") from error
    domains = values.pop("domains", {})
    if values or not isinstance(domains, dict):
        raise UsageError(
            f"{path} has {next(iter(values), 'domains')!r}, which is not a table of domains.",
            hint="Write [domains.NAME], and the settings of a domain below it.",
        )
    return {name: _domain(name, value, path) for name, value in domains.items()}


def _domain(name: str, values: Any, path: Path) -> Domain:
    def wrong(key: str, what: str) -> NoReturn:
        place = f"{path}: domain {name}" + (f", {key}" if key else "")
        raise UsageError(f"{place}: {what}.", hint=_KEYS)

    if not _NAME.fullmatch(name):
        wrong("", "a name has letters, digits, - and _ alone")
    if not isinstance(values, dict):
        wrong("", "it is not a table")
    for key, value in values.items():
        if key not in _CHECKS:
            wrong(key, "there is no such key")
        fits, what = _CHECKS[key]
        if not fits(value):
            wrong(key, f"it must be {what}")
    if ("store" in values) == ("stores" in values):
        wrong("store", "it needs store or stores, one of the two")
    key = "store" if "store" in values else "stores"
    uris = values.get("stores") or [values["store"]]
    try:
        stores = tuple(_location(uri, path) for uri in uris)
    except UsageError as error:
        message = f"{path}: domain {name}, {key}: {error}"
        raise UsageError(message, hint=error.hint) from error
    if len(set(stores)) < len(stores):
        wrong(key, "a datastore stands there twice")
    return _settled(name, stores, values, wrong)


def _settled(
    name: str,
    stores: tuple[Location, ...],
    values: Mapping[str, Any],
    wrong: Callable[[str, str], NoReturn],
) -> Domain:
    settings = {key: values[key] for key in _SETTINGS if key in values}
    if "lmbda" in settings and settings.get("policy", "fixed") != "fixed":
        wrong("lmbda", f"lambda is not fixed under the policy {settings['policy']}")
    blend = values.get("blend")
    if blend is None:
        return Domain(name, stores, settings)
    if len(stores) < 2 or len(blend) != len(stores):
        wrong("blend", f"it has {len(blend)} weights for {len(stores)} datastores")
    return Domain(name, stores, settings, tuple(map(float, blend)))


def _location(uri: str, path: Path) -> Location:
    if "://" in uri and re.search("[?#&]", uri):  # first, for the other messages quote the URI
        raise UsageError(
            "A server's URI has no parameters.",
            hint="Secrets are set in the environment; see the backend's page.",
        )
    where = registry.parse(uri)
    if where.scheme == "memory":
        raise UsageError("A datastore in memory belongs to one process.", hint=_KEYS)
    folder = path.absolute().parent
    if where.network or folder == Path.cwd():
        return where
    return replace(where, root=str(folder / where.root))


def _line(error: ValueError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(_is_number(weight, 0, 1) for weight in value)
        and sum(value) <= 1 + 1e-6
    )


_SETTINGS = ("k", "temperature", "lmbda", "policy")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "store": (lambda v: isinstance(v, str), "a datastore's URI in quotes"),
    "stores": (_is_texts, "a list of datastores' URIs"),
    "k": (lambda v: type(v) is int and v >= 1, "a whole number of at least 1"),
    "temperature": (lambda v: _is_number(v, 5e-324, math.inf) and v < math.inf, "above 0"),
    "lmbda": (lambda v: _is_number(v, 0, 1), "between 0 and 1"),
    "policy": (lambda v: v in _POLICIES, f"one of {', '.join(_POLICIES)}"),
    "blend": (_is_weights, "a list of weights from 0, at most 1 in sum"),
}
_KEYS = f"A domain has {', '.join(_CHECKS)}."
