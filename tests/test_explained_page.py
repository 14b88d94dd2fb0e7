"""The page of an explanation: well-formed, harmless, and true to its numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.attribution import Explanation, Hit, Passage, Source, TokenTrace
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
@given(st.text(max_size=40) | st.just(HOSTILE), st.text(min_size=1, max_size=40) | st.just(HOSTILE))
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
    lists = list(root.iter("dl"))
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
        assert (document.document or "no longer in the catalog")[:20] in told


@pytest.mark.parametrize(
    "explanation", [Explanation("", [], []), Explanation("p", [], [], {}, ("law/a.txt",))]
)
def test_nothing_to_explain(explanation: Explanation) -> None:
    root = parsed(page_of([("", explanation)]))
    assert "There are no tokens." in "".join(root.itertext())


def test_a_long_text_stays_a_page() -> None:
    """Some 1.5 kB a token, passages and all."""
    page = page_of([("long", example(" word" * 3000, names=("law/a.txt", "law/b.txt")))])
    assert len(page) < 2000 * 3000
    assert STORE in page
