"""`knnlm-store alias`, and what `ls` says of aliases and of servers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from knnlm_store import registry
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreError
from knnlm_store.values import Location
from tests.cli_support import run
from tests.doctor_support import Linked, fill, install, manifest

PLACE = "linked://host:6333"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of two datastores: the folder `host:6333`, to this backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    install(tmp_path / "site", monkeypatch, {"linked": Linked})
    for name, length in (("law-1", 10), ("law-2", 20)):
        with Datastore.open_or_create(f"{PLACE}/{name}", manifest()) as store:
            fill(store, length)


def entries(name: str) -> int:
    count: int = run("info", f"{PLACE}/{name}", "--json").json()["entries"]
    return count


def test_an_alias_is_made_moved_and_removed() -> None:
    made = run("alias", f"{PLACE}/law-1", "law")
    assert (made.code, made.out, made.err) == (0, f"{PLACE}/law -> law-1\n", "")
    assert entries("law") == 10
    moved = run("alias", f"{PLACE}/law-2", "law")
    assert (moved.code, moved.out) == (0, f"{PLACE}/law -> law-2\n")
    assert entries("law") == 20
    removed = run("alias", "--remove", f"{PLACE}/law")
    assert (removed.code, removed.out) == (0, f"removed the alias {PLACE}/law\n")
    assert run("info", f"{PLACE}/law").code == 1
    assert [entries(name) for name in ("law-1", "law-2")] == [10, 20]


def test_info_says_what_an_alias_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run("alias", f"{PLACE}/law-2", "law")
    facts = run("info", f"{PLACE}/law", "--json").json()
    assert (facts["name"], facts["alias_of"]) == ("law", "law-2")
    assert "name:           law\nalias_of:       law-2\n" in run("info", f"{PLACE}/law").out
    assert run("info", f"{PLACE}/law-2", "--json").json()["alias_of"] is None
    assert "alias_of" not in run("info", f"{PLACE}/law-2").out

    def refused(location: Location) -> dict[str, str]:
        raise StoreError("You may not list the aliases.")

    monkeypatch.setattr(Linked, "aliases", refused)
    assert run("info", f"{PLACE}/law", "--json").json()["alias_of"] is None


def test_an_alias_that_is_nearly_right() -> None:
    run("alias", f"{PLACE}/law-2", "current")
    assert (
        run("info", f"{PLACE}/curent")
        .failure()[2]
        .startswith(f"Did you mean {PLACE}/current? Make it with: ")
    )
    assert run("alias", f"{PLACE}/lwa-2", "now").failure()[2] == (
        f"Did you mean {PLACE}/law-2? See what there is: knnlm-store ls {PLACE}"
    )


def test_ls_marks_aliases() -> None:
    run("alias", f"{PLACE}/law-2", "law")
    run("alias", f"{PLACE}/law-1", "archive")
    listed = run("ls", PLACE)
    assert (listed.code, listed.err) == (0, "")
    assert listed.out.splitlines() == [
        f"{PLACE}/law-1",
        f"{PLACE}/law-2",
        f"{PLACE}/archive -> law-1",
        f"{PLACE}/law -> law-2",
    ]
    assert run("ls", f"{PLACE}/", "--json").json() == {
        "place": PLACE,
        "names": ["law-1", "law-2"],
        "aliases": {"law": "law-2", "archive": "law-1"},
    }


def test_ls_of_a_backends_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name alone: where the environment says, or where the backend is by default."""
    Path("localhost:1").symlink_to("host:6333")
    listed = run("ls", "linked").out.splitlines()
    assert listed == [f"linked://localhost:1/law-{i}" for i in (1, 2)]
    monkeypatch.setenv("KNNLM_STORE_URL", "//host:6333")
    assert run("ls", "linked").out.splitlines() == [f"{PLACE}/law-{i}" for i in (1, 2)]
    monkeypatch.setenv("KNNLM_STORE_URL", "http://host:6333")
    assert run("ls", "linked").out.splitlines() == [f"{PLACE}/law-{i}" for i in (1, 2)]


@pytest.mark.parametrize("url", ["//host:6333", "https://me:hunter2@host:6333"])
def test_ls_of_a_server_needs_a_backend(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNNLM_STORE_URL", url)
    told = run("ls")
    assert told.failure() == (
        2,
        "KNNLM_STORE_URL is a server, and no backend is named.",
        "Name it, for example: knnlm-store ls qdrant",
    )


def test_ls_of_an_empty_server() -> None:
    nothing = run("ls", "linked://other:6333")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "There are no datastores at linked://other:6333.\n"


def test_whoever_has_it_open_keeps_it() -> None:
    run("alias", f"{PLACE}/law-1", "law")
    with Datastore.open(f"{PLACE}/law") as store:
        run("alias", f"{PLACE}/law-2", "law")
        assert store.backend.count() == 10
        with Datastore.open(f"{PLACE}/law") as now:
            assert now.backend.count() == 20


def test_it_is_never_absent_while_it_moves() -> None:
    run("alias", f"{PLACE}/law-1", "law")
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            for name in ("law-2", "law-1"):
                Linked.connect(registry.parse(f"{PLACE}/{name}")).set_alias("law")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        seen = set()
        for _ in range(40):
            with Datastore.open(f"{PLACE}/law") as store:
                seen.add(store.backend.count())
    finally:
        stop.set()
        mover.join()
    assert seen <= {10, 20}


def test_an_alias_of_an_alias_is_of_the_datastore() -> None:
    run("alias", f"{PLACE}/law-1", "law")
    run("alias", f"{PLACE}/law", "current")
    run("alias", f"{PLACE}/law-2", "law")
    assert (entries("current"), entries("law")) == (10, 20)


def test_rm_of_an_alias_is_refused() -> None:
    run("alias", f"{PLACE}/law-1", "law")
    code, message, _ = run("rm", "--yes", f"{PLACE}/law").failure()
    assert (code, message) == (2, f"{PLACE}/law is an alias.")
    assert entries("law") == 10


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (
            ["faiss:stores/law", "now"],
            2,
            "The backend faiss has no aliases.",
            "Give the datastore's own name wherever it is used.",
        ),
        (
            ["--remove", "faiss:stores/law"],
            2,
            "The backend faiss has no aliases.",
            "Give the datastore's own name wherever it is used.",
        ),
        (
            [f"{PLACE}/law-1"],
            2,
            "No alias is named.",
            "Write knnlm-store alias STORE ALIAS, or knnlm-store alias --remove STORE.",
        ),
        (
            [f"{PLACE}/law-1", "law", "--remove"],
            2,
            "--remove takes the alias alone.",
            "Write knnlm-store alias STORE ALIAS, or knnlm-store alias --remove STORE.",
        ),
        (
            [f"{PLACE}/law-1", "linked://elsewhere/law"],
            2,
            "'linked://elsewhere/law' cannot be an alias: it is a name alone, at the same place.",
            f"For example: knnlm-store alias {PLACE}/law-1 law-1-current",
        ),
        (
            [f"{PLACE}/law-1", "law-2"],
            1,
            "There is a datastore of the name law-2.",
            "Take another.",
        ),
        (
            [f"{PLACE}/nowhere", "law"],
            1,
            None,
            f"See what there is: knnlm-store ls {PLACE}",
        ),
        (
            ["--remove", f"{PLACE}/law-1"],
            1,
            f"There is no alias {PLACE}/law-1.",
            f"See what there is: knnlm-store ls {PLACE}",
        ),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, message: str | None, hint: str) -> None:
    told = run("alias", *arguments).failure()
    assert (told[0], told[2]) == (code, hint)
    assert message is None or told[1] == message
    assert run("ls", PLACE, "--json").json()["aliases"] == {}
    assert [entries(name) for name in ("law-1", "law-2")] == [10, 20]


def test_on_qdrants_engine(tmp_path: Path) -> None:
    """Where a vendor has aliases, moved in one request, and not a stand-in of ours."""
    place = f"qdrant:{tmp_path}/q"
    for name, length in (("law-1", 10), ("law-2", 20)):
        with Datastore.open_or_create(f"{place}/{name}", manifest()) as store:
            fill(store, length)
    with Datastore.open(f"{place}/law-1"):  # one engine for all commands
        for name, count in (("law-1", 10), ("law-2", 20)):
            assert run("alias", f"{place}/{name}", "law").out == f"{place}/law -> {name}\n"
            facts = run("info", f"{place}/law", "--json").json()
            assert (facts["entries"], facts["alias_of"]) == (count, name)
        listed = run("ls", place, "--json").json()
        assert (listed["names"], listed["aliases"]) == (["law-1", "law-2"], {"law": "law-2"})
        assert run("rm", "--yes", f"{place}/law").failure()[0] == 2
        assert run("alias", f"{place}/law-1", "law-2").failure()[0] == 1
        report = run("doctor", f"{place}/law", "--json").json()
        assert (report["recall"], report["distance_unit"]) == (1.0, "squared_l2")
        assert "qdrant-client" in report["versions"]
        assert run("alias", "--remove", f"{place}/law").code == 0
        assert run("ls", place, "--json").json()["aliases"] == {}
