"""`knnlm-store explain` and `generate --explain` as a user types them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from knnlm_store.attribution import Explanation
from tests.cli_support import Run, run, write_corpus
from tests.tuning_support import one_thread

STORE, OTHER = "faiss:stores/law", "faiss:stores/other"
HOSTILE = "The creditor \x1b[31m[bold]red[/bold] \u202eshall\r\n disclose"
NAME = "\x1b]0;x\x07[bold]\u202e.txt"
SHOWN = "law/\\x1b]0;x\\x07[bold]\\u202e.txt"
TEXTS = {
    "a.txt": "The creditor shall disclose the annual rate. " * 3,
    "b.md": "A consumer may cancel within three days.",
    NAME: HOSTILE,
}
SET = ("--k", 20, "--temperature", 2, "--lmbda", 0.5)
TRACE = {
    *("token", "text", "p_lm", "p_knn", "lmbda", "p"),
    *("sources", "other_share", "p_without"),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("explain")
    write_corpus(place / "law", TEXTS)
    write_corpus(place / "other", {"c.txt": "The creditor shall disco, and dance. " * 2})
    for name in ("law", "other"):
        done = run(
            "ingest",
            "--store",
            f"faiss:{place}/stores/{name}",
            "--model",
            saved_model,
            place / name,
        )
        assert done.code == 0, done.err
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Explanation]]:
    """What the page was made of."""
    given: list[tuple[str, Explanation]] = []

    def page_of(explanations: Sequence[tuple[str, Explanation]]) -> str:
        given.extend(explanations)
        return "<p>the page"

    module: Any = ModuleType("knnlm_store.explained")
    module.page_of = page_of
    monkeypatch.setitem(sys.modules, "knnlm_store.explained", module)
    return given


def explain(*arguments: object, store: str = STORE, stdin: bytes = b"") -> Run:
    return run("explain", "--store", store, *SET, *arguments, stdin=stdin)


def test_as_json(pages: list[tuple[str, Explanation]]) -> None:
    done = explain("The creditor", "--json", "--top", 1, "--html", "page.html").json()
    assert (done["settings"]["k"], done["store"]["name"]) == (20, "law")
    (told,) = done["explanations"]
    assert {"title", "log_p", "log_p_without", "prompt", "tokens", "documents"} < told.keys()
    assert (told["title"], told["log_p_without"], told["without"]) == ("The creditor", None, [])
    assert told["settings"] == {
        "store": STORE, "k": 20, "temperature": 2.0, "policy": "fixed", "lmbda": 0.5
    }  # fmt: skip
    assert "".join(token["text"] for token in told["tokens"]) == "The creditor"
    assert math.fsum(math.log(t["p"]) for t in told["tokens"]) == pytest.approx(told["log_p"])
    for token in told["tokens"]:
        assert token.keys() == TRACE
        (source,) = token["sources"]
        assert source.keys() == {"document", "store", "share", "hits", "passage"}
        assert source["passage"].keys() == {"before", "token", "after"}
        assert source["hits"][0].keys() == {"position", "distance", "share"}
        total = source["share"] + token["other_share"]
        assert total == pytest.approx(token["p_knn"], abs=1e-6)
    assert told["documents"][0].keys() == {"document", "store", "contribution", "tokens"}
    ((title, explanation),) = pages
    assert (title, len(explanation.tokens)) == ("The creditor", 12)
    assert Path("page.html").read_text() == "<p>the page"


def test_as_a_table() -> None:
    done = explain("The creditor shall", "A con")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "The creditor shall"
    assert lines[2].split() == [
        *("token", "p_LM", "p_kNN", "lambda", "p", "share", "best", "source")
    ]
    assert lines[3].split()[0] == "T"
    assert [line.split()[-1] for line in lines[6:9]] == ["law/a.txt"] * 3
    assert lines[6].startswith('" "')
    assert {line.split()[3] for line in lines[3:21] if not line.startswith('"')} == {"0.5000"}
    assert lines[22] == "    worth       in  document (worth, in: of 18 tokens)"
    assert lines[23].split()[1:] == ["18", "law/a.txt"]
    assert "A con" in lines
    assert lines[-1].startswith("log-probability -")
    assert "\nno document has a share in it\n" in explain("The", "--lmbda", 0).out


def test_hostile_text_is_harmless() -> None:
    done = explain(HOSTILE, "x\x1b[2J [red]y", "--without", f"law/{NAME}")
    assert done.code == 0, done.err
    assert done.out.isascii()
    assert set(done.out) - {"\n"} <= set(map(chr, range(32, 127)))
    assert SHOWN in done.out
    assert "\n\\x1b " in done.out
    assert "The creditor \\x1b[31m[bold]red[/bold] \\u202eshall disclose\n" in done.out


def test_without_a_document() -> None:
    done = explain("The creditor shall", "--without", "law/a.txt")
    lines = done.out.splitlines()
    head = lines[0].split()
    assert head[5:7] == ["without", "change"]
    for line in lines[1:19]:
        p, without, change = _figures(line, 3, 6)
        assert change == pytest.approx(without - p, abs=2e-4)
    assert any(_figures(line, 5, 6)[0] < -0.05 for line in lines[1:19])
    assert "; without law/a.txt -" in lines[-1]
    both = explain("The", "--json", "--without", "law/a.txt", "--without", "law/b.md").json()
    (told,) = both["explanations"]
    assert told["without"] == ["law/a.txt", "law/b.md"]
    expected = math.fsum(math.log(token["p_without"]) for token in told["tokens"])
    assert told["log_p_without"] == pytest.approx(expected)


def _figures(line: str, start: int, end: int) -> list[float]:
    """Some of the numbers of a token's line, counted from its probability by the model."""
    return [float(number) for number in line[16:].split()[start:end]]


def test_where_text_comes_from(made: Path) -> None:
    (made / "text.txt").write_text("\ufeffThe rate", encoding="utf-8")
    piped = explain("--json", stdin=b"The rate").json()["explanations"]
    named = explain("-", "--file", "text.txt", "--json", stdin=b"The rate").json()["explanations"]
    assert [each["title"] for each in named] == ["standard input", "text.txt"]
    assert [each["tokens"] for each in named] == [piped[0]["tokens"]] * 2


def test_several_datastores() -> None:
    both = ("The creditor shall disco", "--store", OTHER, "--json")
    for more, lmbda in (((), 0.5), (("--blend", "0.6,0.4"), 0.5)):
        done = explain(*both, *more).json()
        (told,) = done["explanations"]
        assert {document["store"] for document in told["documents"]} == {STORE, OTHER}
        for token in told["tokens"]:
            assert token["lmbda"] == pytest.approx(lmbda)
            shares = math.fsum(source["share"] for source in token["sources"])
            assert shares + token["other_share"] == pytest.approx(token["p_knn"], abs=1e-6)
    assert len(told["settings"]["parts"]) == 2
    table = explain("The creditor", "--store", OTHER).out
    assert f"other/c.txt in {OTHER}\n" in table


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ([""], 2, "There is no text in an argument.", "Name one, as in: knnlm-store explain"),
        ([], 2, "There is no text in standard input.", "Name one, as in: knnlm-store explain"),
        (["--file", "no.txt"], 1, "no.txt cannot be read: No such file", "Name a file of text."),
        (["--file", "law"], 1, "law cannot be read: Is a directory", "Name a file of text."),
        (["a", "--policy", "all"], 2, "Text is explained by one policy", "knnlm-store eval"),
        (["a", "--html", "no/page.html"], 2, "There is no folder no for the page.", "mkdir -p no"),
        (["a", "--html", "law"], 2, "law is a folder, not a file", "Name a file, such as "),
        (
            ["a", "--without", "law/a.tx"],
            1,
            f"There is no document 'law/a.tx' in {STORE}.",
            "Did you mean law/a.txt",
        ),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, message: str, hint: str) -> None:
    """Told before a model is loaded: it is missing here."""
    told = run("explain", "--store", STORE, "--temperature", 1, "--model", "./no", *arguments)
    found = told.failure()
    assert (found[0], found[1].startswith(message), found[2].startswith(hint)) == (code, True, True)


def test_text_that_is_none() -> None:
    code, message, hint = explain("-", stdin=b"abc\xff").failure()
    assert (code, message) == (2, "Standard input is not UTF-8: byte 3 cannot be read.")
    assert "iconv" in hint
    code, message, _ = explain("a\udcff").failure()
    assert (code, message) == (2, "A text is not UTF-8.")


# -- generate --------------------------------------------------------------------------------------


def generate(*arguments: object) -> Run:
    return run("generate", "--store", STORE, *SET, "--max-new-tokens", 8, *arguments)


def test_generated_text_is_explained(pages: list[tuple[str, Explanation]]) -> None:
    done = generate("The creditor", "A", "--explain", "--json", "--html", "made.html").json()
    for each, (title, explanation) in zip(done["generations"], pages, strict=True):
        told = each["explanation"]
        assert (told["prompt"], title) == (each["prompt"], each["prompt"])
        assert len(told["tokens"]) == each["tokens"]
        assert "".join(token["text"] for token in told["tokens"]).startswith(each["text"])
        assert [t["p"] for t in told["tokens"]] == [t.p for t in explanation.tokens]
    assert Path("made.html").read_text() == "<p>the page"


def test_documents_follow_the_text() -> None:
    done = generate("The creditor", "--explain")
    assert done.code == 0
    text, documents = done.out.split("\n\n")
    assert text.startswith("The creditor sh")
    head, first, *_ = documents.splitlines()
    assert head == "    worth       in  document (worth, in: of 8 tokens)"
    assert first.endswith(" law/a.txt")
    assert done.err == "For every token of it: --html FILE, or --json.\n"


def test_a_page_of_generated_text(pages: list[tuple[str, Explanation]]) -> None:
    done = generate("The creditor", "--html", "made.html")
    assert (done.out[:15], done.err) == ("The creditor sh", "written: made.html\n")
    assert len(pages) == 1
    told = generate("The", "--html", "no/made.html", "--model", "./no").failure()
    assert told == (2, "There is no folder no for the page.", "mkdir -p no")
