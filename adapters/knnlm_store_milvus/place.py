"""Where a Milvus is and how to reach it: a location, and the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from knnlm_store.errors import UsageError
from knnlm_store.values import Location

TLS = "milvuss"
DEFAULT_PORT = 19530
DEFAULT_TIMEOUT = 30.0
_HOST = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Place:
    """A server with a database, or a file of Milvus Lite.

    lite: absolute path of the file, None for a server. timeout: seconds a call may take.
    """

    label: str
    lite: Path | None = None
    uri: str = ""
    database: str = ""
    ca: str = ""
    timeout: float = DEFAULT_TIMEOUT
    token: str = field(default="", repr=False)

    @classmethod
    def of(cls, location: Location) -> Place:
        """Read a location and the environment. Raises UsageError for what cannot be right."""
        if not location.network:
            return cls(location.root, lite=_file(location), timeout=_timeout())
        address, _, database = location.root.partition("/")
        host = _HOST.fullmatch(address)
        if not host or (database and not _DATABASE.fullmatch(database)):
            raise UsageError(
                f"{location.root!r} is no Milvus server.",
                hint=f"Write {location.scheme}://HOST:{DEFAULT_PORT}/NAME, or HOST:PORT/DB/NAME.",
            )
        scheme = "https" if location.scheme == TLS else "http"
        return cls(
            location.root,
            uri=f"{scheme}://{host['host']}:{host['port'] or DEFAULT_PORT}",
            database=database,
            ca=_ca(),
            timeout=_timeout(),
            token=_token(),
        )


def _file(location: Location) -> Path:
    path = Path(location.root)
    if path.suffix != ".db" or location.scheme == TLS:
        raise UsageError(
            f"{location.root!r} is no file of Milvus Lite.",
            hint="Write milvus:PATH.db/NAME, or milvus://HOST:PORT/NAME for a server.",
        )
    return path.absolute()


def _timeout() -> float:
    text = os.environ.get("KNNLM_MILVUS_TIMEOUT", "")
    try:
        seconds = float(text or DEFAULT_TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(
            f"KNNLM_MILVUS_TIMEOUT must be a number of seconds above 0, not {text!r}.",
            hint="Run: unset KNNLM_MILVUS_TIMEOUT",
        )
    return seconds


def _token() -> str:
    """The token itself, or what stands in the file that is named; never part of a message."""
    token = os.environ.get("KNNLM_MILVUS_TOKEN", "")
    path = os.environ.get("KNNLM_MILVUS_TOKEN_FILE", "")
    if token or not path:
        return token
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"KNNLM_MILVUS_TOKEN_FILE names {path}, which cannot be read.",
            hint="Name a file that holds USER:PASSWORD or an API key.",
        ) from error


def _ca() -> str:
    path = os.environ.get("KNNLM_MILVUS_CA", "")
    if path and not os.access(path, os.R_OK):
        raise UsageError(
            f"KNNLM_MILVUS_CA names {path}, which cannot be read.",
            hint="Name a PEM file of the authority that signed the server's certificate.",
        )
    return path
