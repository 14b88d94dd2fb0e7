"""What a policy does to text it was not fitted to: folds, harm by source, and what pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.interpolation import Float64, mix
from knnlm_store.mixture import Fixed, LambdaPolicy, Mixture
from knnlm_store.tuning.choice import choose
from knnlm_store.tuning.families import Candidate
from knnlm_store.tuning.folds import Sources, folds_of
from knnlm_store.tuning.judging import (
    HARM,
    LEAST,
    bearable,
    judge,
    margin,
    sources_of,
)
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table
from knnlm_store.values import Int64
from tests.tuning_support import made, near_and_far, table_of


def folds(
    documents: Int64, home: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int = 0
) -> list[Int64]:
    """With foreign text of one source, if any."""
    foreign = np.flatnonzero(~home)
    return folds_of(documents, home, {"": foreign} if len(foreign) else {}, seed)


def named(sample: Sample, *names: str) -> Sample:
    """The same tokens, in documents of these names."""
    return replace(sample, names=names)


# -- folds ----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 60), min_size=8, max_size=40),
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_folds_share_no_document(sizes: list[int], foreign: list[int], seed: int) -> None:
    everything = [*sizes, *foreign]
    documents = np.repeat(np.arange(len(everything)), everything)
    is_home = np.arange(len(documents)) < sum(sizes)
    parts = folds(documents, is_home, seed)
    assert len(parts) == 4
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(documents)))
    of_home = [set(documents[fold[is_home[fold]]].tolist()) for fold in parts]
    assert all(of_home)
    assert sum(map(len, of_home)) == len(sizes)
    counts = [int(is_home[fold].sum()) for fold in parts]
    assert max(counts) - min(counts) <= max(sizes)
    if len(foreign) >= 8:
        of_foreign = [set(documents[fold[~is_home[fold]]].tolist()) for fold in parts]
        assert sum(map(len, of_foreign)) == len(foreign)


def test_folds_follow_the_seed() -> None:
    documents, is_home = np.repeat(np.arange(20), 5), np.ones(100, bool)
    first = [fold.tolist() for fold in folds(documents, is_home, 1)]
    assert [fold.tolist() for fold in folds(documents, is_home, 1)] == first
    assert [fold.tolist() for fold in folds(documents, is_home, 2)] != first


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_few_documents_are_cut(rng: np.random.Generator, documents: int) -> None:
    """Whatever foreign text there is: each fold leaves most of the text to fit on."""
    home = made(rng, 200, near=1, right=0.9, documents=documents)
    foreign = made(rng, 150, near=9, right=0.0, documents=15)
    both = joined([home, foreign])
    is_home = np.arange(350) < 200
    assert [int(is_home[fold].sum()) for fold in folds(both.documents, is_home)] == [50] * 4
    (fixed,) = (c for c in choose(home, foreign, 8, 1.0) if c.family == "fixed")
    assert fixed.home < 2.0 < 3.0  # the plain model's


def test_eight_documents_are_enough_not_to_be_cut(rng: np.random.Generator) -> None:
    """Also where five sources of foreign text make five folds."""
    home = made(rng, 160, near=1, right=0.9, documents=8)
    names = [f"knnlm-store/{kind}/0" for kind in "abcde"]
    foreign = named(made(rng, 100, near=9, right=0.0, documents=5), *names)
    both, is_home = joined([home, foreign]), np.arange(260) < 160
    parts = folds_of(both.documents, is_home, sources_of(foreign, 160), 0)
    owners = [set(both.documents[fold[is_home[fold]]].tolist()) for fold in parts]
    assert len(parts) == 5
    assert sum(map(len, owners)) == len(set.union(*owners)) == 8


def three_sources(rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Text, and foreign text whose documents are of three kinds in turns, one of them unlike."""
    names = [
        f"knnlm-store/{kind}/{i}" for i in range(4) for kind in ("novel", "speeches", "python")
    ]
    foreign = named(made(rng, 240, near=9, right=0.0, documents=12), *names)
    return made(rng, 200, near=1, right=0.9), foreign


def test_a_source_is_judged_by_fits_that_did_not_see_it(rng: np.random.Generator) -> None:
    home, foreign = three_sources(rng)
    sources = sources_of(foreign, len(home))
    assert {name: len(rows) for name, rows in sources.items()} == {
        "novel": 80,
        "python": 80,
        "speeches": 80,
    }
    both = joined([home, foreign])
    for name, rows in sources.items():
        owners = both.documents[rows]
        assert all(f"/{name}/" in both.names[owner] for owner in owners)
    is_home = np.arange(len(both)) < len(home)
    parts = folds_of(both.documents, is_home, sources, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(both)))
    of_foreign = [fold[~is_home[fold]].tolist() for fold in parts]
    assert of_foreign == [*(rows.tolist() for rows in sources.values()), []]
    assert all(is_home[fold].any() for fold in parts)


def test_each_is_judged_where_it_was_not_fitted(rng: np.random.Generator) -> None:
    home = near_and_far(rng)
    table, documents = table_of(home), home.documents
    fitted: list[Int64] = []

    def fit(table: Table, rows: Int64) -> LambdaPolicy:
        fitted.append(rows)
        return Fixed(0.1 * len(fitted))

    parts = folds(documents, table.home)
    judged = judge(table, Candidate("mine", 2.0, fit), parts, {}, cure=True)
    expected = np.empty(len(home))
    for number, (rows, fold) in enumerate(zip(fitted, parts, strict=True)):
        assert not set(documents[rows]) & set(documents[fold])
        assert len(rows) + len(fold) == len(home)
        expected[fold] = home[fold].log_p(Mixture(8, 2.0, Fixed(0.1 * (number + 1))))
    np.testing.assert_allclose(judged.log_p, expected)
    assert judged.home == pytest.approx(-expected.mean())
    assert (judged.harm, judged.share) == (0.0, 1.0)


# -- harm -----------------------------------------------------------------------------------------


def test_a_gain_on_one_source_does_not_hide_harm_on_another(rng: np.random.Generator) -> None:
    home = made(rng, 300, near=1, right=0.5)
    names = [f"knnlm-store/{kind}/{i}" for kind in ("novel", "python") for i in range(5)]
    foreign = named(
        joined(
            [
                made(rng, 200, near=1, right=0.0, documents=5),
                made(rng, 200, near=1, right=0.9, documents=5),
            ]
        ),
        *names,
    )
    both, is_home = joined([home, foreign]), np.arange(700) < 300
    table, sources = Table(both, 8, is_home, 2.0), sources_of(foreign, 300)
    parts = folds_of(both.documents, is_home, sources, 0)
    candidate = Candidate("mine", 1.0, lambda _table, _rows: Fixed(0.3))
    as_it_is = judge(table, candidate, parts, sources, cure=False)
    assert as_it_is.harms["python"] < -0.5
    assert as_it_is.harm == as_it_is.harms["novel"] == pytest.approx(-np.log(0.7))
    assert np.mean(list(as_it_is.harms.values())) < 0
    cured = judge(table, candidate, parts, sources, cure=True)
    assert cured.harms["novel"] == pytest.approx(np.log1p(HARM), rel=1e-6)
    assert cured.share == pytest.approx((1 - 1 / (1 + HARM)) / 0.3, rel=1e-6)


log_probs = st.floats(-12, -0.01)


@given(
    st.lists(st.tuples(log_probs | st.just(-np.inf), log_probs), min_size=2, max_size=30),
    st.integers(1, 29),
)
@settings(max_examples=100, deadline=None)
def test_what_is_borne_against_a_fine_grid(pairs: list[tuple[float, float]], cut: int) -> None:
    """The largest share of which no source suffers beyond the bound; all up to it are borne."""
    log_p, log_lm = (np.array(each) for each in zip(*pairs, strict=True))
    rows = np.arange(len(pairs))
    sources = {"a": rows[:cut], "b": rows[cut:]} if cut < len(rows) else {"a": rows}

    def worst(share: float) -> float:
        mixed = mix(log_p, log_lm, np.asarray(share))
        return max(float((log_lm - mixed)[each].mean()) for each in sources.values())

    share = bearable(log_p, log_lm, sources)
    assert worst(share) <= np.log1p(HARM)
    for each in np.linspace(0, 1, 201):
        if abs(each - share) > 1e-8:
            assert (worst(each) <= np.log1p(HARM)) == (each < share)


def test_without_foreign_text_all_is_borne() -> None:
    nothing: Sources = {}
    assert bearable(np.full(3, -np.inf), np.zeros(3), nothing) == 1.0


# -- what pays ------------------------------------------------------------------------------------


def gains_of(rng: np.random.Generator, documents: int) -> tuple[Float64, Int64]:
    owners = np.repeat(np.arange(documents), rng.integers(20, 60, documents))
    shared = rng.normal(size=documents)[owners]
    return 0.1 + 0.5 * shared + rng.normal(size=len(owners)), owners


def test_the_margin_is_the_standard_error(rng: np.random.Generator) -> None:
    """Against drawing documents anew a thousand times."""
    gain, owners = gains_of(rng, 40)
    found = margin(gain - 3.0, np.full(len(gain), -3.0), owners)
    totals, counts = np.bincount(owners, gain), np.bincount(owners)
    drawn = rng.integers(0, 40, (2000, 40))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    assert found == pytest.approx(means.std(), rel=0.1)
    by_tokens = gain.std() / np.sqrt(len(gain))
    assert found > 2 * by_tokens  # tokens of a document go together


def test_too_few_documents_for_an_error(rng: np.random.Generator) -> None:
    for documents in (1, 7):
        gain, owners = gains_of(rng, documents)
        assert margin(gain, np.zeros(len(gain)), owners) == pytest.approx(np.log1p(LEAST))
    gain, owners = gains_of(rng, 8)
    assert margin(gain, np.zeros(len(gain)), owners) > np.log1p(LEAST)


def test_an_impossible_token_pays_nowhere(rng: np.random.Generator) -> None:
    gain, owners = gains_of(rng, 20)
    gain[3] = -np.inf
    assert not -gain.mean() < 0.0 - margin(gain, np.zeros(len(gain)), owners)
