"""What a mixture does to tokens: overlap and frequency, against a slow plain count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.memory import MemoryBackend
from knnlm_store.mixture import Evidence
from knnlm_store.tuning.figures import Contents, by_group, gains, summary
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Entries, Float32
from tests.ingest_support import bare


def filled(documents: list[list[int]]) -> MemoryBackend:
    """A datastore with these documents, written out of order; between ids lie gaps."""
    backend = bare()
    for number, tokens in reversed(list(enumerate(documents))):
        n = len(tokens)
        positions = np.arange(n, dtype=np.int64)
        keys: Float32 = np.zeros((n, 4), np.float32)
        # the next document begins one unused id after this one's last
        start = sum(map(len, documents[:number])) + number
        backend.upsert(Entries(keys, np.array(tokens, np.int64), positions * 0 + start, positions))
    return backend


def contents(documents: list[list[int]]) -> Contents:
    return Contents(filled(documents))


def sample(documents: list[list[int]]) -> Sample:
    targets = np.array([token for tokens in documents for token in tokens], np.int64)
    owners = np.repeat(np.arange(len(documents)), [len(tokens) for tokens in documents])
    n = len(targets)
    nothing = np.empty((n, 0))
    evidence = Evidence(
        nothing.astype(np.float32), nothing.astype(np.int64), nothing, np.ones(n), np.ones(n)
    )
    return Sample(np.zeros(n), targets, owners, evidence)


def longest(known: list[list[int]], asked: list[list[int]]) -> list[str]:
    """For each token the longest of 16, 8 and 4 tokens ending there that stands in a document."""
    found = []
    for tokens in asked:
        for end in range(1, len(tokens) + 1):
            name = "none"
            for n in (4, 8, 16):
                gram = tokens[end - n : end] if end >= n else None
                if gram and any(
                    gram == other[i : i + n] for other in known for i in range(len(other) - n + 1)
                ):
                    name = f"ends {n} tokens found there"
            found.append(name)
    return found


few_tokens = st.lists(st.integers(0, 2), max_size=40)


@given(
    st.lists(few_tokens.filter(bool), min_size=1, max_size=4),
    st.lists(few_tokens.filter(bool), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_overlaps(known: list[list[int]], asked: list[list[int]], copied: bool) -> None:
    """Of few tokens, so that n-grams repeat, across and within documents."""
    if copied:
        asked = [*asked, known[0][1:] + asked[0]]
    groups = contents(known).overlaps(sample(asked))
    expected = longest(known, asked)
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * len(expected)
    names = np.array(list(groups))
    found = names[np.stack(list(groups.values())).argmax(axis=0)]
    assert found.tolist() == expected


def test_a_gram_does_not_cross_documents() -> None:
    store = contents([[1, 2], [3, 4], [5, 6, 7, 8]])
    across = store.overlaps(sample([[1, 2, 3, 4], [5, 6], [7, 8]]))
    assert across["none"].all()
    within = store.overlaps(sample([[9, 5, 6, 7, 8]]))
    assert within["ends 4 tokens found there"].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("n", range(1, 18))
def test_very_little(n: int) -> None:
    """A datastore or a text shorter than the n-grams that are looked for."""
    text = list(range(n))
    for known, asked in (([text], [list(range(40))]), ([list(range(40))], [text])):
        groups = contents(known).overlaps(sample(asked))
        expected = longest(known, asked)
        for name, mask in groups.items():
            assert mask.tolist() == [each == name for each in expected]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1, 9, 10, 99, 100, 1200])), max_size=5),
    st.lists(st.integers(0, 40) | st.just(2**31), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_frequencies(known: list[tuple[int, int]], targets: list[int]) -> None:
    """Bounds belong to the group above them; tokens that nobody has are never there."""
    tokens = [token for token, times in known for _ in range(times)]
    groups = contents([tokens] if tokens else []).frequencies(sample([targets]))
    bounds = {
        "never": (0, 0),
        "1 to 9": (1, 9),
        "10 to 99": (10, 99),
        "100 to 999": (100, 999),
        "1,000 to 9,999": (1000, 9999),
        "10,000 and more": (10_000, 10**9),
    }
    assert list(groups) == list(bounds)
    for name, (low, high) in bounds.items():
        assert groups[name].tolist() == [low <= tokens.count(t) <= high for t in targets]


def test_an_empty_datastore() -> None:
    nothing = contents([])
    assert len(nothing) == 0
    assert nothing.frequencies(sample([[1, 2]]))["never"].all()
    assert nothing.overlaps(sample([list(range(20))]))["none"].all()


def test_summary() -> None:
    """Likelier or unlikelier by over 1 % is help or hurt."""
    log_lm = np.log([0.5, 0.5, 0.5, 0.5])
    figures = summary(np.log([0.6, 0.501, 0.499, 0.1]), log_lm)
    product = 0.6 * 0.501 * 0.499 * 0.1
    assert figures == pytest.approx({"perplexity": product**-0.25, "helped": 0.25, "hurt": 0.25})
    assert summary(np.array([-np.inf, -1]), log_lm[:2])["perplexity"] == pytest.approx(np.exp(700))


def test_gain_by_group() -> None:
    log_p, log_lm = np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -2.0, -2.5])
    masks = {
        "both": np.array([True, True, False]),
        "last": np.array([False, False, True]),
        "no": np.zeros(3, bool),
    }
    assert by_group(log_p, log_lm, masks) == {
        "both": {"tokens": 2, "gain": 0.5},
        "last": {"tokens": 1, "gain": -0.5},
        "no": {"tokens": 0, "gain": 0.0},
    }


def test_a_datastore_too_large_is_not_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group at all, rather than that no token overlaps."""
    backend, text = filled([[1, 2, 3, 4, 5]]), sample([[1, 2, 3, 4]])
    log_p = np.array([0.0, 0.1, 0.2, 0.3])
    found = gains(backend, text, log_p)
    assert found["overlap"]["ends 4 tokens found there"] == {"tokens": 1, "gain": 0.3}
    assert found["frequency"]["1 to 9"] == {"tokens": 4, "gain": pytest.approx(0.15)}
    monkeypatch.setattr("knnlm_store.tuning.figures.LARGEST", 4)
    monkeypatch.setattr(backend, "scan", None)
    monkeypatch.setattr(backend, "count", lambda: 5)
    assert gains(backend, text, log_p) == {}
