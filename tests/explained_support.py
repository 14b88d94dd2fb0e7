"""Explanations to be shown: of English law, and of text that means harm."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from knnlm_store.attribution import Explanation, Hit, Passage, Ranked, Source, TokenTrace

STORE = "faiss:stores/law"
HOSTILE = (
    "</title></style></label><script>window.hurt = 1; document.title = 'hurt'</script>"
    '<img src=//evil.example/x.png onerror="window.hurt = 1">\'"&lt;]]>--><!--'
    "\x00\x1b[2J\udcff\u202egnp.exe\u2066\ufffe" + "long" * 200
)
NAMES = (
    "regulations/1026-truth-in-lending/1026.18-content-of-disclosures.txt",
    "regulations/1002-equal-credit-opportunity.txt",
    HOSTILE,
    None,
)
PROMPT = "\u00a7 1026.18 Content of disclosures.\nFor each transaction, the creditor"
LAW = """ shall disclose the following information as applicable:

(a) Creditor. The identity of the creditor making the disclosures.
(b) Amount financed. The "amount financed", using that term, and a brief description such as \
"the amount of credit provided to you or on your behalf." The amount financed is calculated by:
    (1) Determining the principal loan amount or the cash price (subtracting any downpayment);
    (2) Adding any other amounts that are financed by the creditor and are not part of the \
finance charge; and
    (3) Subtracting any prepaid finance charge.
(c) Itemization of amount financed. A separate written itemization of the amount financed."""


def pieces(text: str) -> list[str]:
    """Cut text somewhat as a tokenizer would; long words in two."""
    found = re.findall(r"\n+| +(?=\s)| ?\w{1,8}| ?[^\w\s]+|\s", text)
    assert "".join(found) == text
    return found


def passage(tokens: list[str], at: int) -> Passage:
    before, after = tokens[max(at - 24, 0) : at], tokens[at + 1 : at + 25]
    return Passage("".join(before), tokens[at], "".join(after))


def example(
    text: str = LAW, *, seed: int = 0, without: bool = False, names: tuple[str | None, ...] = NAMES
) -> Explanation:
    """Explain a text with shares at random, by documents that hold the same text."""
    rng, tokens = np.random.default_rng(seed), pieces(text)
    traces = [_trace(rng, tokens, place, names, without) for place in range(len(tokens))]
    settings = {"store": STORE, "k": 1024, "temperature": 12.5, "policy": "ratio", "lmbda": None}
    gone = tuple(name for name in names[:1] if name is not None) if without else ()
    return Explanation(PROMPT, traces, ranked(traces), settings, gone)


def _trace(
    rng: np.random.Generator,
    tokens: list[str],
    place: int,
    names: tuple[str | None, ...],
    without: bool,
) -> TokenTrace:
    # runs of tokens are known by heart, as in text that stands in a datastore too
    lmbda = float(np.clip(0.45 + 0.5 * np.sin(place / 7) + rng.normal(0, 0.1), 0.02, 0.98))
    p_lm, p_knn = float(rng.beta(0.6, 1)), float(rng.beta(2, 1)) if rng.random() < 0.9 else 0.0
    parts = rng.dirichlet(np.ones(len(names) + 1) / 2) * p_knn
    order = sorted(range(len(names)), key=lambda i: -parts[i])
    sources = tuple(
        _source(rng, tokens, place, names[i], float(parts[i])) for i in order if parts[i] > 0
    )
    p = lmbda * p_knn + (1 - lmbda) * p_lm
    p_without = p * float(rng.choice([1, 1, 0.97, 0.3, 1.05])) if without else None
    other = float(parts[-1])
    return TokenTrace(place, tokens[place], p_lm, p_knn, lmbda, p, sources, other, p_without)


def _source(
    rng: np.random.Generator, tokens: list[str], place: int, name: str | None, share: float
) -> Source:
    first, second = Hit(place + 1200, 31.5, share * 0.75), Hit(place + 4800, 52.25, share * 0.25)
    hits = (first, second) if rng.random() < 0.3 else (Hit(place + 1200, 31.5, share),)
    shown = passage(tokens, place)
    if name == HOSTILE:
        shown = replace(shown, before=HOSTILE, after=HOSTILE)
    return Source(name, STORE, share, hits, shown)


def ranked(traces: list[TokenTrace]) -> list[Ranked]:
    """Rank the documents of traces by what they contributed."""
    worth: dict[str | None, list[float]] = {}
    for trace in traces:
        for source in trace.sources:
            worth.setdefault(source.document, []).append(trace.lmbda * source.share / trace.p)
    found = [Ranked(name, STORE, sum(each), len(each)) for name, each in worth.items()]
    return sorted(found, key=lambda each: -each.contribution)
