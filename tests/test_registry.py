from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from knnlm_store import registry
from knnlm_store.errors import MissingDependency, UnknownBackend, UsageError
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Location, Spec


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("memory:", Location("memory", "", "memory")),
        ("memory:draft", Location("memory", "", "draft")),
        ("faiss:law", Location("faiss", ".", "law")),
        ("faiss:stores/law", Location("faiss", "stores", "law")),
        ("faiss:stores/law/", Location("faiss", "stores", "law")),
        ("faiss:/data/stores/law", Location("faiss", "/data/stores", "law")),
        ("faiss:/law", Location("faiss", "/", "law")),
        ("faiss:../a b/naïve", Location("faiss", "../a b", "naïve")),
        ("milvus:lite.db/law", Location("milvus", "lite.db", "law")),
        ("faiss:me@home/law", Location("faiss", "me@home", "law")),
        ("qdrant://host:6333/law", Location("qdrant", "host:6333", "law", network=True)),
        ("milvus://[::1]:19530/law", Location("milvus", "[::1]:19530", "law", network=True)),
    ],
)
def test_parse(uri: str, location: Location) -> None:
    assert registry.parse(uri) == location
    if uri != "memory:draft":  # a name nobody else can use is not worth printing
        assert registry.parse(str(location)) == location


@pytest.mark.parametrize(
    "uri", ["", "law", "stores/law", ":law", "a-b:law", "1a:law", " faiss:law"]
)
def test_parse_refuses_what_has_no_scheme(uri: str) -> None:
    with pytest.raises(UsageError) as refusal:
        registry.parse(uri)
    assert str(refusal.value) == f"{uri!r} is not a datastore."
    assert refusal.value.hint == "Write BACKEND:PATH/NAME, for example faiss:stores/law."


@pytest.mark.parametrize(
    "uri",
    [
        "faiss:",
        "faiss:/",
        "faiss:.",
        "faiss:stores/..",
        "qdrant://",
        "qdrant://host",
        "qdrant:///law",
    ],
)
def test_parse_refuses_what_has_no_name(uri: str) -> None:
    """Also `..`: dropping that datastore would remove the folder above."""
    with pytest.raises(UsageError) as refusal:
        registry.parse(uri)
    assert str(refusal.value) == f"{uri!r} names no datastore."
    assert uri.partition(":")[0] in refusal.value.hint


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        (
            "qdrant://host:6333",
            "Write qdrant://HOST:PORT/NAME, for example qdrant://host:6333/law.",
        ),
        (
            "qdrant:localhost:6333/law",
            "Write qdrant://localhost:6333/law, or qdrant:./localhost:6333/law for the folder.",
        ),
        (
            "http://localhost:6333/law",
            "Write qdrant://localhost:6333/law or milvus://localhost:6333/law; "
            "with TLS qdrants: or milvuss:.",
        ),
    ],
)
def test_what_is_meant_for_a_server_is_told_so(uri: str, hint: str) -> None:
    """A server must not become a folder of that name, made without a word."""
    with pytest.raises(UsageError) as refusal:
        registry.parse(uri)
    assert refusal.value.hint == hint


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        (None, "qdrant://localhost:6333/law"),
        ("localhost:6400", "qdrant://localhost:6400/law"),
        ("//host:6400/", "qdrant://host:6400/law"),
        ("http://host:6400", "qdrant://host:6400/law"),
        ("https://host:443/path", "qdrants://host:443/path/law"),
        ("stores", "qdrant:stores/law"),
    ],
)
def test_places_of_the_short_form(url: str | None, uri: str) -> None:
    assert str(registry.short_form("qdrant", "law", url)) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "qdrant://user:hunter2@host:6333/law",
        "qdrant://hunter2@host/law",
        "qdrant://user:hunter2@host",
        "no-scheme://user:hunter2@host/law",
        "qdrant://user:hun/ter2@host/",
    ],
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError) as refusal:
        registry.parse(uri)
    assert str(refusal.value) == "A datastore's URI must not hold credentials."
    assert "environment" in refusal.value.hint
    assert "ter2" not in str(refusal.value) + refusal.value.hint


def test_memory_comes_through_the_same_door() -> None:
    assert registry.load("memory") is MemoryBackend
    assert {"memory", "faiss"} <= set(registry.providers())


def test_connect_takes_a_uri_or_a_location() -> None:
    for place in ("memory:", Location("memory", "", "memory")):
        backend = registry.connect(place)
        assert isinstance(backend, MemoryBackend)
        assert not backend.exists()
        backend.create(Spec(3), {})
        assert not registry.connect(place).exists()


def test_unknown_backend_lists_what_is_installed() -> None:
    with pytest.raises(UnknownBackend) as refusal:
        registry.load("pinecone")
    assert str(refusal.value) == "There is no backend 'pinecone'."
    assert refusal.value.hint.startswith("Installed: ")
    assert "faiss" in refusal.value.hint
    assert "memory" in refusal.value.hint


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, distribution: str, scheme: str, value: str, code: str = "") -> None:
    """Put a distribution with one adapter on sys.path, as pip would."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{scheme} = {value}\n")
    if code:
        (site / f"{value.partition(':')[0]}.py").write_text(code)
    importlib.invalidate_caches()


GOOD = "from knnlm_store.memory import MemoryBackend\nclass Mine(MemoryBackend): pass\n"


def test_adapter_of_a_stranger(site: Path) -> None:
    install(site, "knnlm-mine", "mine", "adapter_one:Mine", GOOD)
    assert registry.load("mine").__name__ == "Mine"
    assert type(registry.connect("mine:here/law")).__name__ == "Mine"


def test_two_providers_are_refused_by_name(site: Path) -> None:
    install(site, "knnlm-mine", "twice", "adapter_two:Mine", GOOD)
    install(site, "knnlm-yours", "twice", "adapter_three:Mine", GOOD)
    with pytest.raises(UnknownBackend) as refusal:
        registry.load("twice")
    assert str(refusal.value) == (
        "Several packages provide the backend 'twice': "
        "knnlm-mine (adapter_two:Mine), knnlm-yours (adapter_three:Mine)."
    )
    assert refusal.value.hint == "Uninstall all but one."
    assert "adapter_two" not in sys.modules


def test_one_adapter_found_twice_is_one(site: Path) -> None:
    """An editable install beside a wheel shows its entry point twice."""
    install(site, "knnlm-mine", "again", "adapter_four:Mine", GOOD)
    install(site, "knnlm-mine-dev", "again", "adapter_four:Mine")
    assert registry.load("again").__name__ == "Mine"


def test_missing_client_library_names_the_command(site: Path) -> None:
    install(site, "knnlm-mine", "mine", "adapter_five:Mine", "import no_such_client.http\n")
    with pytest.raises(MissingDependency) as refusal:
        registry.load("mine")
    assert str(refusal.value) == "no_such_client is not installed."
    assert refusal.value.hint == "Run: pip install 'knnlm-store[mine]'"


def test_adapter_that_is_gone_is_no_missing_client(site: Path) -> None:
    """No extra would mend a package whose own module is missing."""
    install(site, "knnlm-mine", "mine", "no_such_adapter:Mine")
    with pytest.raises(ModuleNotFoundError, match="no_such_adapter"):
        registry.load("mine")


@pytest.mark.parametrize("thing", ["Mine = 3", "class Mine: pass", "def Mine(): pass"])
def test_entry_point_must_be_a_backend(site: Path, thing: str) -> None:
    module = f"adapter_{abs(hash(thing))}"
    install(site, "knnlm-mine", "mine", f"{module}:Mine", thing + "\n")
    with pytest.raises(UnknownBackend, match=f"{module}:Mine is not a VectorBackend"):
        registry.load("mine")


def test_require() -> None:
    registry.require("json", "data")
    with pytest.raises(MissingDependency) as refusal:
        registry.require("no_such_library.sub", "data")
    assert str(refusal.value) == "no_such_library is not installed."
    assert refusal.value.hint == "Run: pip install 'knnlm-store[data]'"
