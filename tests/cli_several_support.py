"""Datastores of two texts, for the command line with several of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli_support import run, write_corpus

LAW, DIARY, BOTH, OTHER = (f"faiss:stores/{name}" for name in ("law", "diary", "both", "other"))
TEXTS = {
    "law": "The creditor shall disclose the annual rate before a consumer signs the agreement. "
    * 3,
    "diary": "Today we walked along the river, and a heron stood in the reeds until evening. " * 3,
}
HELD_OUT = "The creditor walked along the river before a consumer signs; a heron shall disclose it."
TWO = ("--store", LAW, "--store", DIARY)
SET = ("--k", 1024, "--temperature", 2, "--lmbda", 0.4)


def make(place: Path, saved_model: Path) -> None:
    """Make a folder with a datastore of each text, one of both, and one with another key point."""
    for name, text in TEXTS.items():
        write_corpus(place / name, {"a.txt": text})
        write_corpus(place / "both", {f"{name}.txt": text})
    write_corpus(place / "held-out", {"a.txt": HELD_OUT})
    write_corpus(place / "valid", {"a.txt": f"{TEXTS['law'][:60]}, until evening a heron walked."})
    for name, *options in (
        ("law",),
        ("diary",),
        ("both",),
        ("law", "--key-module", "lm_head_input"),
    ):
        store = f"faiss:{place}/stores/{'other' if options else name}"
        done = run("ingest", "--store", store, "--model", saved_model, place / name, *options)
        assert done.code == 0, done.err


def evaluated(*options: object) -> dict[str, Any]:
    return run("eval", "held-out", *options, "--json").json()


def nll(*options: object) -> float:
    return float(evaluated(*options)["mixture"]["nll"])
