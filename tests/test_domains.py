"""`knnlm.toml`: where it is found, what may stand in it, and how a domain is set."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from knnlm_store.domainfile import set_domain
from knnlm_store.domains import VARIABLE, Domains, parse
from knnlm_store.errors import StoreError, UsageError

LAW = '[domains.law]\nstore = "qdrant://localhost:6333/law"\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def stores(path: Path | None = None) -> dict[str, list[str]]:
    domains = Domains.read(path).domains
    return {name: [str(store) for store in domain.stores] for name, domain in domains.items()}


# -- found and read --------------------------------------------------------------------------------


def test_where_it_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As given, by the environment, here, above: in this order."""
    assert Domains.read() == Domains(None, {})
    deep = place / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    for folder, name in ((place, "top"), (place / "a", "middle"), (deep, "here")):
        (folder / "knnlm.toml").write_text(LAW.replace("law", name))
        assert list(stores()) == [name]
    monkeypatch.setenv(VARIABLE, "../knnlm.toml")
    assert list(stores()) == ["middle"]
    assert list(stores(place / "knnlm.toml")) == ["top"]
    monkeypatch.setenv(VARIABLE, "none.toml")
    with pytest.raises(UsageError, match=r"There is no file none\.toml"):
        Domains.read()
    monkeypatch.setenv(VARIABLE, "")
    assert list(stores()) == ["here"]


def test_what_a_domain_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "knnlm.toml").write_text(
        '[domains.law]\nstore = "faiss:stores/law"\nk = 8\ntemperature = 2\npolicy = "ratio"\n'
        '[domains.all]\nstores = ["faiss:/far/a", "milvus://h:1/b"]\nblend = [0.5, 0]\n'
    )
    law, both = Domains.read().domains.values()
    assert law.json() == {
        "stores": ["faiss:stores/law"],
        "k": 8,
        "temperature": 2,
        "policy": "ratio",
    }
    assert both.json() == {"stores": ["faiss:/far/a", "milvus://h:1/b"], "blend": [0.5, 0.0]}
    assert not law.is_plain
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert stores()["law"] == [f"faiss:{place}/stores/law"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[domains", "knnlm.toml is not TOML: "),
        ("\udcff", "knnlm.toml is not TOML: it is not UTF-8"),
        ("[domain.law]", "has 'domain', which is not a table of domains"),
        ("domains = 3", "has 'domains', which is not a table of domains"),
        ("[domains]\nlaw = 3", "domain law: it is not a table"),
        ('[domains."a b"]', "domain a b: a name has letters"),
        ("[domains.law]", "domain law, store: it needs store or stores"),
        (LAW + "stores = ['faiss:a/b']", "domain law, store: it needs store or stores"),
        (LAW + "K = 3", "domain law, K: there is no such key"),
        ("[domains.law]\nstore = 3", "domain law, store: it must be a datastore's URI"),
        ("[domains.law]\nstores = []", "domain law, stores: it must be a list"),
        ("[domains.law]\nstores = [3]", "domain law, stores: it must be a list"),
        ("[domains.law]\nstore = 'law'", "domain law, store: 'law' is not a datastore"),
        ("[domains.law]\nstore = 'memory:'", "domain law, store: A datastore in memory"),
        (
            "[domains.law]\nstores = ['faiss:a/b', 'faiss:a/b']",
            "domain law, stores: a datastore stands there twice",
        ),
        (LAW + "k = true", "domain law, k: it must be a whole number"),
        (LAW + "k = 0", "domain law, k: it must be a whole number"),
        (LAW + "k = 2.0", "domain law, k: it must be a whole number"),
        (LAW + "temperature = 0", "domain law, temperature: it must be above 0"),
        (LAW + "temperature = nan", "domain law, temperature: it must be above 0"),
        (LAW + "temperature = inf", "domain law, temperature: it must be above 0"),
        (LAW + "lmbda = 1.5", "domain law, lmbda: it must be between 0 and 1"),
        (LAW + "lmbda = '0.5'", "domain law, lmbda: it must be between 0 and 1"),
        (LAW + "policy = 'all'", "domain law, policy: it must be one of fixed, ratio"),
        (LAW + "policy = []", "domain law, policy: it must be one of fixed, ratio"),
        (LAW + "lmbda = 0.5\npolicy = 'ratio'", "domain law, lmbda: lambda is not fixed"),
        (LAW + "blend = 0.5", "domain law, blend: it must be a list of weights"),
        (LAW + "blend = [0.6, 0.6]", "domain law, blend: it must be a list of weights"),
        (LAW + "blend = [0.6]", "domain law, blend: it has 1 weights for 1 datastores"),
    ],
)
def test_what_cannot_be(place: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text.encode(errors="surrogateescape"), place / "knnlm.toml")
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(place / "knnlm.toml"))
    assert str(caught.value).endswith(".")
    assert caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "qdrant://me:hunter2@host:6333/law",
        "https://h/law?api_key=hunter2",
        "qdrant://h:1/a#hunter2",
    ],
)
def test_secrets_are_refused_and_not_repeated(place: Path, uri: str) -> None:
    with pytest.raises(UsageError, match="domain law, store: A ") as caught:
        parse(f"[domains.law]\nstore = '{uri}'".encode(), place / "knnlm.toml")
    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_names_that_nobody_set(place: Path) -> None:
    with pytest.raises(UsageError, match="'law' is neither a datastore nor a domain"):
        Domains.read().named("law")
    (place / "knnlm.toml").write_text(LAW)
    with pytest.raises(UsageError, match=r"knnlm\.toml has no domain 'low'") as caught:
        Domains.read().named("low")
    assert caught.value.hint == "It has: law. Set it with: knnlm-store domains set low STORE"


# -- set -------------------------------------------------------------------------------------------


def test_set_keeps_all_else(place: Path) -> None:
    """Comments, order, settings, line ends, mode and a link that leads to the file."""
    real, path = place / "real.toml", place / "knnlm.toml"
    before = (
        "# ours\r\n[domains.law] # the law\r\n# was law-1\r\nk = 3\r\n"
        "  store = 'faiss:a/law' # here\r\n\r\n[domains.other]\r\nstore = 'faiss:a/other'\r\n"
    )
    real.write_bytes(before.encode())
    real.chmod(0o640)
    path.symlink_to(real)
    domain = set_domain(path, "law", ["faiss:b/law"])
    assert domain.json() == {"stores": ["faiss:b/law"], "k": 3}
    after = before.replace("'faiss:a/law'", '"faiss:b/law"')
    assert real.read_bytes() == after.encode()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert path.is_symlink()
    set_domain(path, "law", ["faiss:b/law", "faiss:b/law-2"])
    set_domain(path, "new", ["milvus://h:19530/new"])
    assert stores() == {
        "law": ["faiss:b/law", "faiss:b/law-2"],
        "other": ["faiss:a/other"],
        "new": ["milvus://h:19530/new"],
    }
    set_domain(path, "law", ["faiss:a/law"])
    assert stores()["law"] == ["faiss:a/law"]
    assert sorted(os.listdir(place)) == ["knnlm.toml", "real.toml"]


def test_set_from_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user means here is what the file says there."""
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    for uri in ("faiss:stores/law", f"faiss:{place}/below/stores/law"):
        set_domain(place / "knnlm.toml", "law", [uri])
        assert stores()["law"] == [f"faiss:{place}/below/stores/law"]


@pytest.mark.parametrize(
    "text",
    [
        "[domains]\nlaw = { store = 'faiss:a/b' }\n",
        "[domains]\nlaw.store = 'faiss:a/b'\n",
        "domains.law.store = 'faiss:a/b'\n",
        "[domains.'law']\nstore = 'faiss:a/b'\n",
        "[domains.law]\nstores = [\n  'faiss:a/b',\n  'faiss:a/c',\n]\n",
        "[domains.law]\nstore = '''faiss:a/b'''\n",
    ],
)
def test_what_set_does_not_change(place: Path, text: str) -> None:
    """Said politely; the file stays as it is."""
    path = place / "knnlm.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="in a way that this command does not change") as caught:
        set_domain(path, "law", ["faiss:b/law"])
    assert caught.value.hint == 'Change it by hand: store = "faiss:b/law"'
    assert path.read_text() == text
    assert os.listdir(place) == ["knnlm.toml"]


def test_what_cannot_be_set(place: Path) -> None:
    path = place / "knnlm.toml"
    both = "[domains.law]\nstores = ['faiss:a/b', 'faiss:a/c']\nblend = [0.5, 0.5]\n"
    path.write_text(both)
    with pytest.raises(UsageError, match="blend: it has 2 weights for 1 datastores"):
        set_domain(path, "law", ["faiss:a/b"])
    with pytest.raises(UsageError, match="cannot be a domain's name"):
        set_domain(path, "a.b", ["faiss:a/b"])
    with pytest.raises(UsageError, match="is not a datastore"):
        set_domain(path, "law", ["b"])
    assert path.read_text() == both
    path.write_text("[broken")
    with pytest.raises(UsageError, match="is not TOML"):
        set_domain(path, "law", ["faiss:a/b"])
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        set_domain(place / "no" / "knnlm.toml", "law", ["faiss:a/b"])


def test_many_at_once(place: Path) -> None:
    """No change is lost, and whoever reads sees a whole file."""
    path = place / "knnlm.toml"
    set_domain(path, "first", ["faiss:a/first"])
    threads = [
        threading.Thread(target=set_domain, args=(path, f"d{i}", [f"faiss:a/{i}"]))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert "first" in stores()
    assert len(stores()) == 13
