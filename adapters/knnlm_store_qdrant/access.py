"""Where a server is and how it lets us in: the location and the environment."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from knnlm_store.errors import UsageError
from knnlm_store.values import Location

KEY, KEY_FILE = "KNNLM_QDRANT_API_KEY", "KNNLM_QDRANT_API_KEY_FILE"
AUTHORITY, TIMEOUT = "KNNLM_QDRANT_CA", "KNNLM_QDRANT_TIMEOUT"
PORT = 6333

_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Access:
    """What a client needs. `timeout`: seconds an ordinary call may take."""

    url: str
    timeout: float
    api_key: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None

    @property
    def place(self) -> str:
        """The server's address as messages show it."""
        return urlsplit(self.url).netloc

    @classmethod
    def of(cls, location: Location) -> Access:
        """Read location and environment. Raises UsageError, never quoting a secret."""
        secure = location.scheme == "qdrants"
        url = f"{'https' if secure else 'http'}://{location.root.rstrip('/')}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(
                f"{location.root!r} is no address of a server.",
                hint=f"Write {location.scheme}://HOST:{PORT}/NAME.",
            ) from error
        place = parts.netloc if port is not None else f"{parts.netloc.rstrip(':')}:{PORT}"
        url = url.replace(parts.netloc, place, 1)
        key = _api_key(os.environ)
        if key and not secure and not _is_loopback(parts.hostname or ""):
            _warn_of_plain_key(place)
        return cls(url, timeout_of(os.environ), key, _context(os.environ) if secure else None)


def timeout_of(environment: Mapping[str, str]) -> float:
    """Seconds an ordinary call may take. Raises UsageError."""
    text = environment.get(TIMEOUT) or "30"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{TIMEOUT} is {text!r}, which is no number of seconds.")
    return seconds


def _api_key(environment: Mapping[str, str]) -> str | None:
    key, source = environment.get(KEY), KEY
    if not key and (file := environment.get(KEY_FILE)):
        source = f"the file {file}"
        try:
            key = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"The file {file}, which {KEY_FILE} names, cannot be read.",
                hint="Check its path and permissions.",
            ) from error
        if not key:
            raise UsageError(
                f"The file {file}, which {KEY_FILE} names, is empty.",
                hint="Put the API key into it.",
            )
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"What {source} holds is no API key: it has characters that no header may have.",
            hint="Copy the key again, on one line.",
        )
    return key or None


def _context(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Trust the authority that the environment names, else those every program trusts."""
    file = environment.get(AUTHORITY)
    if not file:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{file}, which {AUTHORITY} names, is no file of certificates.",
            hint="Name a PEM file with the certificate of the authority.",
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn_of_plain_key(place: str) -> None:
    """Say once for each server that the key can be read on the way."""
    if place not in _warned:
        _warned.add(place)
        _log.warning(
            "The API key goes to %s unencrypted; with TLS write qdrants:// instead.", place
        )
