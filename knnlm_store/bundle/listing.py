"""bundle.json: what a bundle says of itself, and which files it consists of."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from knnlm_store.errors import StoreCorrupt, StoreError, StoreMismatch, StoreNotFound

T = TypeVar("T")

NAME = "bundle.json"
KIND = "knnlm-store bundle"
FORMAT = 1
Holds = Literal["entries", "documents", "records"]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LARGEST = 64 * 1024 * 1024  # bytes of a bundle.json that are read
_AGAIN = "Copy the bundle again from where it came, or export it again with knnlm-store export."
_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file of a bundle: what it holds, its size in bytes, its rows, its digest in hex."""

    name: str
    holds: Holds
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What stands in bundle.json.

    name: of the datastore. created: when it was exported. version: of the program. manifest: the
    fields of the datastore's. dimension: of keys. storage: how the datastore kept them; the
    bundle keeps float16 as float16, all else as float32. documents, entries: how many.
    """

    name: str
    created: str
    version: str
    manifest: Mapping[str, Any]
    dimension: int
    storage: str
    documents: int
    entries: int
    files: tuple[BundleFile, ...]

    @property
    def shards(self) -> list[BundleFile]:
        """The files that hold entries, in order."""
        return [file for file in self.files if file.holds == "entries"]

    def the(self, holds: Holds) -> BundleFile:
        """The one file that holds the documents, or the records."""
        return next(file for file in self.files if file.holds == holds)

    def encode(self) -> bytes:
        """Give the bytes of bundle.json."""
        body = {"kind": KIND, "format": FORMAT, **asdict(self)}
        whole = body | {"digest": _digest(body)}
        return (json.dumps(whole, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Listing:
        """Read a bundle's bundle.json, and see that each of its files is there, in its size.

        Raises StoreNotFound where there is no bundle, StoreMismatch for a newer format,
        StoreCorrupt for what cannot be what was written or leads out of the folder.
        """
        listing = _decode(_text(folder), folder)
        for file in listing.files:
            _require(folder, file)
        return listing


def damaged(place: Path, what: str) -> StoreCorrupt:
    """Make the error of a file of a bundle that cannot be what was written."""
    return StoreCorrupt(f"{place} {what}.", hint=_AGAIN)


def digest_of(path: Path) -> str:
    """Digest of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
    return digest.hexdigest()


def check_digest(folder: Path, file: BundleFile) -> None:
    """Raise StoreCorrupt unless a file's bytes are those that were written."""
    path = folder / file.name
    try:
        found = digest_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != file.sha256:
        raise damaged(path, f"was altered: its checksum is not the one in {NAME}")


def _text(folder: Path) -> bytes:
    path = folder / NAME
    make = f"Make one with: knnlm-store export STORE {folder}"
    if not folder.is_dir():
        raise StoreNotFound(f"There is no bundle at {folder}.", hint=make)
    if not path.exists() and not path.is_symlink():
        raise StoreNotFound(f"{folder} is no bundle: it has no {NAME}.", hint=make)
    _require_inside(folder, NAME)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(text) > _LARGEST:
        raise damaged(path, "is too large to be a bundle's")
    return text


def _decode(text: bytes, folder: Path) -> Listing:
    """Read the text, of the right kind and format, and as it was written."""
    place = folder / NAME
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(place, "is not JSON") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise StoreNotFound(
            f"{folder} is no bundle: its {NAME} is another program's.",
            hint=f"Make one with: knnlm-store export STORE {folder}",
        )
    written = body.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise StoreMismatch(
            f"{folder} has the bundle format {written}; this version reads format {FORMAT}.",
            field="format",
            hint="Run: pip install --upgrade knnlm-store",
        )
    _require_names(body, place)
    if body.pop("digest", None) != _digest(body):
        raise damaged(place, "was altered: its checksum is not its own")
    try:
        return _listing(body)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(place, "lacks what a bundle must say") from error


def _require_names(body: Mapping[str, Any], place: Path) -> None:
    """Raise StoreCorrupt if a file is named that may lie outside; told before all else."""
    files = body.get("files")
    for file in files if isinstance(files, list) else []:
        name = file.get("name") if isinstance(file, dict) else None
        if isinstance(name, str) and (not _PLAIN.fullmatch(name) or name == NAME):
            raise StoreCorrupt(
                f"{place} names the file {name!r}, which is no plain name of a bundle's file.",
                hint="Do not trust this bundle: export another with knnlm-store export.",
            )


def _listing(body: Mapping[str, Any]) -> Listing:
    """Build a listing; raises KeyError, TypeError or ValueError for what cannot be one."""
    if body["format"] != FORMAT:
        raise ValueError(body["format"])
    texts = (_typed(body[name], str) for name in ("name", "created", "version", "storage"))
    name, created, version, storage = texts
    dimension, documents, entries = (
        _count(body[name]) for name in ("dimension", "documents", "entries")
    )
    listing = Listing(
        name, created, version, _typed(body["manifest"], dict), dimension, storage,
        documents, entries, tuple(map(_file, _typed(body["files"], list))),
    )  # fmt: skip
    names = Counter(file.name for file in listing.files)
    held = Counter(file.holds for file in listing.files)
    rows = {kind: sum(f.rows for f in listing.files if f.holds == kind) for kind in held}
    if any(n > 1 for n in names.values()) or not held["documents"] == held["records"] == 1:
        raise ValueError(names)
    if (rows["documents"], rows.get("entries", 0)) != (listing.documents, listing.entries):
        raise ValueError(rows)
    return listing


def _file(value: Any) -> BundleFile:
    names = ("name", "holds", "sha256")
    name, holds, sha256 = (_typed(value[each], str) for each in names)
    if holds not in get_args(Holds):
        raise ValueError(holds)
    return BundleFile(
        name, cast("Holds", holds), _count(value["bytes"]), _count(value["rows"]), sha256
    )


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(value)
    return value


def _require(folder: Path, file: BundleFile) -> None:
    """Raise StoreCorrupt unless a file is there, inside the folder, in its size."""
    path = folder / file.name
    if not path.exists() and not path.is_symlink():
        raise damaged(path, "is missing")
    _require_inside(folder, file.name)
    size = path.stat().st_size
    if size != file.bytes:
        how = "was cut short" if size < file.bytes else "is too long"
        raise damaged(path, f"{how}: it has {size:,} of {file.bytes:,} bytes")


def _require_inside(folder: Path, name: str) -> None:
    path = folder / name
    try:
        real = path.resolve(strict=True)
        ordinary = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:  # a link in a circle is either, by version
        raise damaged(path, "cannot be read: it is a link that leads nowhere") from error
    if not real.is_relative_to(folder.resolve()):
        raise StoreCorrupt(
            f"{path} is a link that leads out of the bundle.",
            hint="Do not trust this bundle: export another with knnlm-store export.",
        )
    if not ordinary:
        raise damaged(path, "is not an ordinary file")


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be read: {error.strerror or error}.",
        hint="Give this user permission to read it, and check the disk.",
    )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
