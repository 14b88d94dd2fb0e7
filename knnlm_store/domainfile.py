"""Changes `knnlm.toml`: one domain, in one step, and nothing else that stands there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from knnlm_store import registry
from knnlm_store.domains import Domain, check_name, parse
from knnlm_store.errors import StoreError, StoreNotWritable, UsageError
from knnlm_store.replacing import replace_file

_STORES = re.compile(
    r"""(?P<before>\s*)stores?\s*=\s*(?:"[^"\n]*"|'[^'\n]*'|\[[^\]\n]*\])(?P<after>\s*(?:\#.*)?)"""
)


def set_domain(path: Path, name: str, uris: Sequence[str]) -> Domain:
    """Have a domain stand for other datastores; its settings, and all else in the file, stay.

    The file and the domain are made if need be; whoever reads it meanwhile sees the old or the
    new one. uris: paths in them are relative to the working folder. Raises UsageError for what
    cannot be, and for a file whose domain is not written as a table of its own.
    """
    check_name(name)
    stores = [_relative(uri, path) for uri in uris]
    with _alone(path):
        old = path.read_bytes() if path.exists() else b""
        parse(old, path)
        new = _edited(old.decode(), name, stores)
        if new is None or not _as_expected(old, new, name, stores):
            raise UsageError(
                f"{path} writes the domain {name} in a way that this command does not change.",
                hint=f"Change it by hand: {_assignment(stores)}",
            )
        domain = parse(new.encode(), path)[name]
        replace_file(path, new.encode())
    return domain


def _relative(uri: str, path: Path) -> str:
    """Give a URI as the file is to have it: its paths relative to the file's folder."""
    where = registry.parse(uri)
    folder = path.absolute().parent
    if where.network or os.path.isabs(where.root) or folder == Path.cwd():
        return uri
    return str(replace(where, root=os.path.relpath(where.root, folder)))


def _assignment(stores: Sequence[str]) -> str:
    texts = [json.dumps(store, ensure_ascii=False) for store in stores]
    return f"store = {texts[0]}" if len(texts) == 1 else f"stores = [{', '.join(texts)}]"


def _edited(text: str, name: str, stores: Sequence[str]) -> str | None:
    """Change the line with a domain's stores, or add the domain; None if that line is not plain."""
    lines = text.split("\n")  # splitlines would also split within a text
    if not lines[-1]:
        lines.pop()
    header = re.compile(rf"\s*\[\s*domains\s*\.\s*{name}\s*\]\s*(#.*)?")
    start = next((i for i, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        gap = [""] if lines else []
        return "\n".join([*lines, *gap, f"[domains.{name}]", _assignment(stores), ""])
    for i in range(start + 1, len(lines)):
        if found := _STORES.fullmatch(lines[i]):
            lines[i] = found["before"] + _assignment(stores) + found["after"]
            return "\n".join([*lines, ""])
        if lines[i].lstrip().startswith("["):
            break
    return None


def _as_expected(old: bytes, new: str, name: str, stores: Sequence[str]) -> bool:
    """Whether a text says what the old one did, but for a domain's stores."""
    expected: dict[str, Any] = tomllib.loads(old.decode())
    domain = expected.setdefault("domains", {}).setdefault(name, {})
    for key in ("store", "stores"):
        domain.pop(key, None)
    domain |= {"store": stores[0]} if len(stores) == 1 else {"stores": list(stores)}
    try:
        return tomllib.loads(new) == expected
    except tomllib.TOMLDecodeError:
        return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from changing the file meanwhile."""
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except PermissionError as error:
        raise StoreNotWritable(
            f"This user has no permission to write {path}.", hint="Name another with --config."
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Name another with --config.",
        ) from error
