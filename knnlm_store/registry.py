"""From a datastore's URI to its adapter, through the entry-point group `knnlm_store.backends`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from knnlm_store.backend import Aliased, VectorBackend
from knnlm_store.errors import KnnlmError, MissingDependency, UnknownBackend, UsageError
from knnlm_store.values import Location

GROUP = "knnlm_store.backends"
_SERVER = re.compile(r"[A-Za-z0-9.-]+:\d+")


def parse(uri: str) -> Location:
    """Read a URI: `memory:`, `faiss:PATH/NAME`, `qdrant://host:6333/NAME`.

    Raises UsageError for anything else; nothing is opened.
    """
    scheme, colon, rest = uri.partition(":")
    network = rest.startswith("//")
    if network and "@" in rest:  # first, for the other messages quote the URI
        raise UsageError(
            "A datastore's URI must not hold credentials.",
            hint="Set them in the environment; see the backend's page.",
        )
    if scheme in ("http", "https"):
        raise UsageError(
            f"{uri!r} does not say which backend is there.",
            hint=f"Write qdrant:{rest} or milvus:{rest}; with TLS qdrants: or milvuss:.",
        )
    if not colon or not scheme.isidentifier():
        raise UsageError(
            f"{uri!r} is not a datastore.",
            hint="Write BACKEND:PATH/NAME, for example faiss:stores/law.",
        )
    if scheme == "memory":
        return Location(scheme, "", rest or "memory")
    root, slash, name = rest.removeprefix("//").rstrip("/").rpartition("/")
    if name in ("", ".", "..") or (network and not root):
        place = "//HOST:PORT" if network else "PATH"
        example = f"{rest.rstrip('/')}/law" if network else "stores/law"
        raise UsageError(
            f"{uri!r} names no datastore.",
            hint=f"Write {scheme}:{place}/NAME, for example {scheme}:{example}.",
        )
    if not network and _SERVER.fullmatch(root):
        raise UsageError(
            f"{uri!r} is a folder named {root}, which looks like a server.",
            hint=f"Write {scheme}://{root}/{name}, or {scheme}:./{root}/{name} for the folder.",
        )
    return Location(scheme, root or slash or ".", name, network)


def parse_root(uri: str) -> Location:
    """Read the URI of a place that holds datastores: `faiss:PATH`, `qdrant://host:6333`."""
    if ":" not in uri:
        raise UsageError(
            f"{uri!r} is no place of datastores.",
            hint="Write BACKEND:PATH, for example faiss:stores.",
        )
    return parse(uri.rstrip("/") + "/*")


def short_form(backend: str, name: str, url: str | None = None) -> Location:
    """Build a location from a backend's name, a datastore's name and a place.

    url: a folder, or `host:port`, also behind `//`, `http://` or `https://`; by default the
    backend's own choice. https is the backend's scheme with an s. Raises UnknownBackend,
    UsageError if the backend has no default place.
    """
    root = url or load(backend).default_root
    if _SERVER.fullmatch(root) and load(backend).remote:
        root = f"//{root}"
    if root.startswith(("http://", "https://")):
        backend += "s" if root.startswith("https") else ""
        root = root.partition(":")[2]
    if not root:
        raise UsageError(
            f"The backend {backend} needs a place.",
            hint=f"Give --url or --store {backend}:PATH/{name}.",
        )
    return parse(f"{backend}:{root.rstrip('/')}/{name}")


def providers() -> dict[str, list[EntryPoint]]:
    """Installed adapters: scheme to the entry points that claim it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def load(scheme: str) -> type[VectorBackend]:
    """Import the adapter of a scheme.

    Raises UnknownBackend if none or several claim it, MissingDependency if its client library
    is not installed.
    """
    points = providers()
    claims = {p.value: p for p in points.get(scheme, [])}
    if not claims:
        raise UnknownBackend(
            f"There is no backend {scheme!r}.",
            hint=f"{_guess(scheme, points)}Installed: {', '.join(sorted(points))}.",
        )
    if len(claims) > 1:
        who = ", ".join(
            sorted(f"{p.dist.name if p.dist else '?'} ({v})" for v, p in claims.items())
        )
        raise UnknownBackend(
            f"Several packages provide the backend {scheme!r}: {who}.",
            hint="Uninstall all but one.",
        )
    (point,) = claims.values()
    try:
        adapter = point.load()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == point.module.split(".")[0]:
            raise
        # qdrants: is the same adapter as qdrant:, and its extra bears the shorter name
        extra = min(p.name for some in points.values() for p in some if p.value == point.value)
        raise MissingDependency.of(error.name or "a client library", extra) from error
    if not (isinstance(adapter, type) and issubclass(adapter, VectorBackend)):
        raise UnknownBackend(f"{point.value} is not a VectorBackend.")
    return adapter


def did_you_mean(location: Location) -> str:
    """Ask, with a space behind, about a datastore or an alias there whose name is much like this.

    Nothing where there is none, or what there is cannot be listed.
    """
    adapter = load(location.scheme)
    try:
        names = adapter.names(location)
        if issubclass(adapter, Aliased):
            names = [*names, *adapter.aliases(location)]
    except KnnlmError:  # the hint must not take the place of what went wrong
        return ""
    return _guess(location.name, names, location)


def _guess(name: str, names: Iterable[str], location: Location | None = None) -> str:
    near = get_close_matches(name, [each for each in names if each != name], 1)
    if not near:
        return ""
    return f"Did you mean {replace(location, name=near[0]) if location else near[0]}? "


def connect(uri: str | Location) -> VectorBackend:
    """Bind to the datastore of a URI, which need not exist yet."""
    location = parse(uri) if isinstance(uri, str) else uri
    return load(location.scheme).connect(location)


def require(module: str, extra: str) -> None:
    """Raise MissingDependency unless the module can be imported."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency.of(error.name or module, extra) from error
