"""Addresses, API keys, TLS and deadlines."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from knnlm_store.errors import BackendUnavailable, StoreError, UsageError
from knnlm_store.values import Location
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.access import Access
from knnlm_store_qdrant.engine import Endpoint
from tests import qdrant_support as support
from tests.qdrant_front import Asked, Front, Reply, certificate, fronted
from tests.qdrant_support import created, document

endpoint, front, vendor, store = support.endpoint, support.front, support.vendor, support.store

SECRET = "k3y-that-nobody-may-see"


def at(root: str, scheme: str = "qdrant") -> Location:
    return Location(scheme, root, "law", network=True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of Qdrant."""
    for name in ("API_KEY", "API_KEY_FILE", "CA", "TIMEOUT"):
        monkeypatch.delenv(f"KNNLM_QDRANT_{name}", raising=False)
    return monkeypatch


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (at("there"), "http://there:6333"),
        (at("there:6334"), "http://there:6334"),
        (at("[::1]"), "http://[::1]:6333"),
        (at("[::1]:7"), "http://[::1]:7"),
        (at("there/behind/a/path"), "http://there:6333/behind/a/path"),
        (at("there.there", "qdrants"), "https://there.there:6333"),
    ],
    ids=str,
)
def test_addresses(bare: pytest.MonkeyPatch, location: Location, url: str) -> None:
    access = Access.of(location)
    assert access.url == url
    assert (access.tls is not None) == url.startswith("https")
    assert access.timeout == 30


@pytest.mark.parametrize("root", ["there:port", "there:99999", "[::1"])
def test_addresses_that_are_none(bare: pytest.MonkeyPatch, root: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        QdrantBackend.connect(at(root))


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_timeouts_that_are_none(bare: pytest.MonkeyPatch, text: str) -> None:
    bare.setenv("KNNLM_QDRANT_TIMEOUT", text)
    with pytest.raises(UsageError, match=f"KNNLM_QDRANT_TIMEOUT is '{text}'"):
        QdrantBackend.connect(at("there"))


# -- keys --------------------------------------------------------------------------------------


def test_key_from_the_environment_or_a_file(
    endpoint: Endpoint, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variable goes first; a file may end with a new line."""
    file = tmp_path / "key"
    file.write_text(endpoint.api_key + "\n")
    location = at(endpoint.url.partition("//")[2])
    bare.setenv("KNNLM_QDRANT_API_KEY_FILE", str(file))
    QdrantBackend.names(location)
    bare.setenv("KNNLM_QDRANT_API_KEY", SECRET)
    with pytest.raises(StoreError, match="refused the API key") as caught:
        QdrantBackend.names(location)
    assert "KNNLM_QDRANT_API_KEY" in caught.value.hint
    assert not caught.value.retryable
    bare.delenv("KNNLM_QDRANT_API_KEY")
    bare.delenv("KNNLM_QDRANT_API_KEY_FILE")
    with pytest.raises(StoreError, match="refused the API key"):
        QdrantBackend.connect(location)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\n", "is empty"), (b"\xff", "cannot be read")]
    + [(c, "characters that no header may have") for c in (b"k3y\nk3y", "k3y-é".encode())],
    ids=str,
)
def test_files_that_hold_no_key(
    bare: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    bare.setenv("KNNLM_QDRANT_API_KEY_FILE", str(file))
    with pytest.raises(UsageError, match=words) as caught:
        QdrantBackend.connect(at("localhost"))
    assert str(file) in str(caught.value)
    assert "k3y" not in str(caught.value)


def test_keys_are_shown_nowhere(
    front: Front, bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Not in errors of any kind, in logs, in what is printed or in a repr."""
    bare.setenv("KNNLM_QDRANT_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    said = [repr(Access.of(front.location("law")))]
    replies = [(400, b'{"status": {"error": "bad key %s"}}' % SECRET.encode()), (500, b""), None]
    for reply in replies:
        front.change = _answering(reply)
        with pytest.raises(StoreError) as caught:
            QdrantBackend.connect(front.location("law"))
        said += [str(caught.value), repr(caught.value), caught.value.hint]
    said += [*capfd.readouterr(), caplog.text]
    assert "***" in "".join(said)
    assert SECRET not in "".join(said)


def _answering(reply: Reply | None) -> Callable[[Asked, Reply], Reply | None]:
    return lambda asked, _: reply


def test_key_without_tls_is_said_once(
    bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setenv("KNNLM_QDRANT_API_KEY", SECRET)
    for root in ("localhost:1", "127.0.0.2", "[::1]:6333"):
        Access.of(at(root))
    Access.of(at("far.example", "qdrants"))
    assert caplog.text == ""
    for _ in range(2):
        Access.of(at("far.example"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "The API key goes to far.example:6333 unencrypted; with TLS write qdrants:// instead."
    )


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certificate(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def secure(
    endpoint: Endpoint, bare: pytest.MonkeyPatch, certificates: dict[str, tuple[Path, Path]]
) -> Iterator[Front]:
    """A front that speaks TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificates["ours"])
    bare.setenv("KNNLM_QDRANT_API_KEY", endpoint.api_key)
    with fronted(endpoint, tls) as front:
        yield front


def test_tls(
    secure: Front, bare: pytest.MonkeyPatch, certificates: dict[str, tuple[Path, Path]]
) -> None:
    bare.setenv("KNNLM_QDRANT_CA", str(certificates["ours"][0]))
    store = created(QdrantBackend.connect(secure.location("secure", "qdrants")))
    store.upsert(document(1, 10))
    assert store.count() == 10
    store.drop()
    store.close()


@pytest.mark.parametrize("authority", ["theirs", ""])
def test_certificates_that_are_not_trusted(
    secure: Front,
    bare: pytest.MonkeyPatch,
    certificates: dict[str, tuple[Path, Path]],
    authority: str,
) -> None:
    """Of another authority, or of none that every program trusts; trying again is no use."""
    if authority:
        bare.setenv("KNNLM_QDRANT_CA", str(certificates[authority][0]))
    with pytest.raises(BackendUnavailable, match=r"certificate of Qdrant at .* is not") as caught:
        QdrantBackend.connect(secure.location("law", "qdrants"))
    assert not caught.value.retryable
    assert "KNNLM_QDRANT_CA" in caught.value.hint
    assert secure.log == []  # and no key was sent


def test_tls_where_there_is_none(
    front: Front, bare: pytest.MonkeyPatch, certificates: dict[str, tuple[Path, Path]]
) -> None:
    bare.setenv("KNNLM_QDRANT_CA", str(certificates["ours"][0]))
    with pytest.raises(BackendUnavailable, match="does not speak TLS as expected") as caught:
        QdrantBackend.connect(front.location("law", "qdrants"))
    assert not caught.value.retryable


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_authorities_that_are_none(
    bare: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    bare.setenv("KNNLM_QDRANT_CA", str(file))
    with pytest.raises(UsageError, match="is no file of certificates"):
        QdrantBackend.connect(at("there", "qdrants"))


# -- servers that do not answer ----------------------------------------------------------------


def test_nobody_there(bare: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        root = f"127.0.0.1:{server.getsockname()[1]}"
    for call in (QdrantBackend.connect, QdrantBackend.names, QdrantBackend.aliases):
        with pytest.raises(BackendUnavailable, match=f"Qdrant at {root} cannot be reached"):
            call(at(root))
