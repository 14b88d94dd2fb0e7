"""The page of an explanation: well-formed, harmless, and true to its numbers."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.attribution import Explanation, Hit, Passage, Ranked, Source, TokenTrace
from knnlm_store.explained import page_of
from tests.explained_support import HOSTILE, NAMES, STORE, example, ranked

ATTRIBUTES = {
    "action",
    "background",
    "cite",
    "data",
    "formaction",
    "href",
    "poster",
    "src",
    "srcset",
}

ANY = st.characters(codec=None) | st.sampled_from("<>&\"'/=-!\x00\x1b\r\n\u202e\ud800\ufffe")
BAD = st.text(ANY, min_size=1, max_size=40) | st.just(HOSTILE)


def parsed(page: str) -> ElementTree.Element:
    """The page as XML, which fails where markup is not closed or a character cannot stand."""
    head, _, body = page.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ElementTree.fromstring(body)


def texts(root: ElementTree.Element, selector: str) -> list[str]:
    return ["".join(found.itertext()) for found in root.findall(f".//{selector}")]


def one(text: str, name: str) -> Explanation:
    """A token and a document with this text in every place where there is text."""
    passage = Passage(text, text, text)
    source = Source(name, name, 0.5, (Hit(3, 1.5, 0.5),), passage)
    trace = TokenTrace(1, text, 0.25, 0.5, 0.5, 0.375, (source,), 0.0, 0.3)
    settings_ = {"store": name, "policy": text}
    return Explanation(text, [trace], ranked([trace]), settings_, (name,))


@settings(max_examples=60, deadline=None)
@given(BAD, BAD)
def test_no_text_becomes_markup(text: str, name: str) -> None:
    plain = parsed(page_of([("plain", one("text", "name"))]))
    strange = parsed(page_of([(text, one(text, name))]))
    for element in strange.iter():
        assert element.tag not in ("script", "img", "iframe", "object", "embed", "base", "form")
        for attribute, value in element.attrib.items():
            assert not attribute.startswith("on")
            assert attribute not in ATTRIBUTES or value.startswith("#")
    known = {element.tag for element in plain.iter()} | {"em", "rect", "svg"}
    assert {element.tag for element in strange.iter()} <= known


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = page_of([("one", example()), ("two", example(seed=1, without=True))])
    root = parsed(page)
    (policy,) = [m.get("content", "") for m in root.iter("meta") if m.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "url(" not in page
    assert "@import" not in page
    assert not list(root.iter("script"))


def test_references_lead_somewhere() -> None:
    root = parsed(page_of([("one", example(without=True)), ("two", example(seed=1))]))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for attribute in ("for", "aria-describedby", "aria-labelledby"):
            assert set((element.get(attribute) or "").split()) <= set(ids)
        if (href := element.get("href")) is not None:
            assert href.removeprefix("#") in ids


def test_numbers_are_those_of_the_explanation() -> None:
    explanation = example(names=("law/a.txt", "law/b.txt"), without=True)
    root = parsed(page_of([("one", explanation)]))
    lists = [dl for dl in root.iter("dl") if dl.get("id")]
    assert len(lists) == len(explanation.tokens)
    for dl, token in zip(lists, explanation.tokens, strict=True):
        told = dict(zip(texts(dl, "dt"), texts(dl, "dd"), strict=True))
        for name, value in (
            ("pLM", token.p_lm), ("pkNN", token.p_knn), ("\u03bb", token.lmbda), ("p", token.p),
        ):  # fmt: skip
            assert float(told[name].replace("\u2212", "-")) == pytest.approx(value, abs=1e-4)
    details = [d for d in root.iter("div") if d.get("class") == "d"]
    for detail, token in zip(details, explanation.tokens, strict=True):
        shares = [float(b.text or "nan") for b in detail.findall("./ol/li/b")]
        assert shares == pytest.approx([s.share for s in token.sources], abs=1e-4)
        assert texts(detail, "ol/li/a") == [
            f"{_rank(explanation, s.document)}. {s.document}" for s in token.sources
        ]


def _rank(explanation: Explanation, document: str | None) -> int:
    return 1 + [each.document for each in explanation.documents].index(document)


def test_documents_are_ranked() -> None:
    explanation = example()
    root = parsed(page_of([("one", explanation)]))
    named = [row for row in root.iter("tr") if (row.get("id") or "").startswith("d0-")]
    assert len(named) == len(NAMES)
    for row, document in zip(named, explanation.documents, strict=True):
        told = "".join(row.itertext())
        assert f"{document.contribution:.2f}" in told
        assert (document.document or "no longer in the catalog")[-20:] in told


@pytest.mark.parametrize(
    "explanation", [Explanation("", [], []), Explanation("p", [], [], {}, ("law/a.txt",))]
)
def test_nothing_to_explain(explanation: Explanation) -> None:
    root = parsed(page_of([("", explanation)]))
    assert "There are no tokens." in "".join(root.itertext())


def test_a_long_text_stays_a_page() -> None:
    """Some 1.2 kB a token: passages are as long as there is room for."""
    page = page_of([("long", example(" word" * 3000, names=("law/a.txt", "law/b.txt")))])
    assert len(page) < 1500 * 3000
    assert STORE in page


def trace(text: str = "a", p_without: float | None = None, **more: Any) -> TokenTrace:
    return TokenTrace(1, text, 0.25, 0.5, 0.5, 0.375, p_without=p_without, **more)


@pytest.mark.parametrize(
    ("text", "seen", "spoken"),
    [
        (" word", "word", ""),
        (".\n\n", ".\u21b5\u21b5", ""),
        ("\r\n", "\u21b5", "line break"),
        ("   ", "   ", "space"),
        ("a\nb", "a\u21b5\nb", ""),
        ("", "\u25af", "part of a character"),
    ],
)
def test_text_without_form_is_seen_and_heard(text: str, seen: str, spoken: str) -> None:
    page = page_of([("one", Explanation("", [trace(text)], []))])
    (label,) = [each for each in parsed(page).iter("label") if each.get("for") == "t0-0"]
    assert "".join(label.itertext()) == f"{seen}{spoken}, 67 %"


@pytest.mark.parametrize(
    ("p_without", "class_", "change"),
    [
        (None, None, None),
        (0.375, None, "+0.000"),
        (0.36, "c1", "\u22120.041"),
        (0.1, "c2", "\u22121.322"),
        (0.0, "c2", "\u2212\u221e"),
        (0.4, "c3", "+0.065"),
        (0.9, "c4", "+0.875"),
    ],
)
def test_what_changes_is_marked(
    p_without: float | None, class_: str | None, change: str | None
) -> None:
    tokens = [trace("a", p_without)]
    page = page_of([("one", Explanation("", tokens, [], {}, ("law/a.txt",)))])
    root = parsed(page)
    (label,) = [each for each in root.iter("label") if each.get("for") == "t0-0"]
    looks = set((label.get("class") or "").split())
    assert looks & {"c1", "c2", "c3", "c4"} == ({class_} if class_ else set())
    detail = dict(zip(texts(root, "dl/div/dt"), texts(root, "dl/div/dd"), strict=True))
    assert detail.get("\u0394 log p") == change
    assert texts(root, "p/strong")[-1] == (change or "+0.000")


def test_a_name_that_stands_for_several_documents_leads_to_none() -> None:
    """Those that are in no catalog cannot be told apart."""
    hits = (Hit(3, 1.5, 0.25),)
    sources = (Source(None, STORE, 0.25, hits), Source(None, STORE, 0.25, hits))
    documents = [Ranked(None, STORE, 0.3, 1), Ranked(None, STORE, 0.3, 1)]
    root = parsed(page_of([("one", Explanation("", [trace(sources=sources)], documents))]))
    assert texts(root, "ol/li/em") == ["no longer in the catalog"] * 2
    assert not root.findall(".//ol/li/a")
    assert len(root.findall(".//table//input")) == 1  # all documents


def test_many_documents_are_folded_and_the_rest_is_counted() -> None:
    documents = [Ranked(f"law/{n}.txt", STORE, 2.0, 1) for n in range(503)]
    root = parsed(page_of([("one", Explanation("", [trace()], documents))]))
    shown, more = (len(table.findall("tbody/tr")) for table in root.iter("table"))
    assert (shown, more) == (1 + 12, 488)
    assert "And 3 more documents, worth 6.00 together." in texts(root, "p")


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_shades_are_readable_in_light_and_dark() -> None:
    page = page_of([("one", example())])
    style = page.partition("<style>")[2].partition("</style>")[0]
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    for block in style.split("@media (prefers-color-scheme: dark)"):
        # what is dark comes first in all but the first block, up to two closing braces
        head, _, rest = block.partition("} }") if light else ("", "", block)
        dark.update(re.findall(r"--(\w+): (#\w{6})", head))
        light.update(re.findall(r"--(\w+): (#\w{6})", rest))
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for shade in ("page", "s1", "s2", "s3", "s4", "s5"):
            assert contrast(colours["ink"], colours[shade]) >= 4.5
        for text in ("ink", "soft", "one"):
            assert contrast(colours[text], colours["panel"]) >= 4.5
        assert contrast(colours["line"], colours["page"]) >= 3
