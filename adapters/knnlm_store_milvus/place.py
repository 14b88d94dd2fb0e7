"""Where a Milvus is and how to reach it: a location, and the environment."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from knnlm_store.errors import UsageError
from knnlm_store.values import Location

TLS = "milvuss"
DEFAULT_PORT = 19530
DEFAULT_TIMEOUT = 30.0
_HOST = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
TOKEN, TOKEN_FILE = "KNNLM_MILVUS_TOKEN", "KNNLM_MILVUS_TOKEN_FILE"
AUTHORITY = "KNNLM_MILVUS_CA"
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_log = logging.getLogger("knnlm_store.milvus")
_warned: set[str] = set()


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
        secure, server = location.scheme == TLS, f"{host['host']}:{host['port'] or DEFAULT_PORT}"
        token = _token()
        if token and not secure and not _is_loopback(host["host"]):
            _warn_of_plain_token(server)
        return cls(
            location.root,
            uri=f"{'https' if secure else 'http'}://{server}",
            database=database,
            ca=_authority() if secure else "",
            timeout=_timeout(),
            token=token,
        )


def _file(location: Location) -> Path:
    path = Path(location.root)
    if path.suffix != ".db" or location.scheme == TLS:
        raise UsageError(
            f"{location.root!r} is no file of Milvus Lite.",
            hint="Write milvus:PATH.db/NAME, or milvus://HOST:PORT/NAME for a server.",
        )
    return Path(os.path.abspath(path))  # as Milvus Lite knows its files: without `..`


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
    token, source = os.environ.get(TOKEN, ""), TOKEN
    if not token and (file := os.environ.get(TOKEN_FILE, "")):
        token, source = _read_token(file), f"the file {file}"
    if not token.isprintable():
        raise UsageError(
            f"What {source} holds is no token: it has characters that no token may have.",
            hint="Copy the token again, on one line.",
        )
    return token


def _read_token(file: str) -> str:
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The file {file}, which {TOKEN_FILE} names, cannot be read.",
            hint="Check its path and permissions.",
        ) from error
    if not token:
        raise UsageError(
            f"The file {file}, which {TOKEN_FILE} names, is empty.",
            hint="Put USER:PASSWORD or an API key into it.",
        )
    return token


def _authority() -> str:
    """The file of the authority that the environment names, if any, once it proves to be one."""
    file = os.environ.get(AUTHORITY, "")
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{file}, which {AUTHORITY} names, is no file of certificates.",
            hint="Name a PEM file with the certificate of the authority.",
        ) from error
    return file


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _warn_of_plain_token(server: str) -> None:
    """Say once for each server that the token can be read on the way."""
    if server not in _warned:
        _warned.add(server)
        _log.warning("The token goes to %s unencrypted; with TLS write milvuss:// instead.", server)
