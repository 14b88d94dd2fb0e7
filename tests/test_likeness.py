"""Whether a query is like the text a gate is for: fitted, kept, and read wherever gates are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store import KnnLM
from knnlm_store.calibrated import policy_from_json, policy_to_json
from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError
from knnlm_store.evaluation import evaluate
from knnlm_store.gate import Gate, Likeness
from knnlm_store.ingest import ingest
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Pool
from knnlm_store.transform import fit
from knnlm_store.tuning.learn import learn
from knnlm_store.tuning.likeness import RIDGE, fit_likeness
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table
from knnlm_store.values import Float32
from tests.tiny import tiny_model
from tests.tuning_support import evidence, made, one_thread, random_gate, texts

DIMENSION = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def asked(sample: Sample, queries: Any) -> Sample:
    """The same tokens, searched for by these queries."""
    seen = replace(sample.evidence, queries=np.asarray(queries, np.float32))
    return replace(sample, evidence=seen)


def about(rng: np.random.Generator, place: float, n: int, dimension: int = DIMENSION) -> Float32:
    """Queries about a place on the first axis."""
    queries = rng.normal(size=(n, dimension))
    queries[:, 0] += place
    return queries.astype(np.float32)


def both(home: Sample, foreign: Sample) -> Table:
    sample = joined([home, foreign])
    return Table(sample, 8, np.arange(len(sample)) < len(home), 2.0)


# -- fitting --------------------------------------------------------------------------------------


def test_it_is_ridge_regression(rng: np.random.Generator) -> None:
    """As solved from the queries themselves, foreign tokens weighing twice as much together."""
    home = asked(made(rng, 300, near=1, right=0.5), about(rng, 1, 300))
    foreign = asked(made(rng, 100, near=1, right=0.5), about(rng, -1, 100))
    table = both(home, foreign)
    line, _ = fit_likeness(table, np.arange(400))
    assert line is not None
    x = np.concatenate([home.evidence.queries, foreign.evidence.queries]).astype(np.float64)
    y = np.where(table.home, 1.0, -1.0)
    share = table.counts / table.counts.sum()
    assert share[300:].sum() == pytest.approx(2 * share[:300].sum())
    mean, middle = share @ x, share @ y
    spread = (x - mean).T @ ((x - mean) * share[:, None])
    ridge = RIDGE * np.trace(spread) / DIMENSION * np.eye(DIMENSION)
    direction = np.linalg.solve(spread + ridge, (x - mean).T @ (share * (y - middle)))
    np.testing.assert_allclose(line.direction, direction, rtol=1e-9)
    queries = about(rng, 0, 5)
    np.testing.assert_allclose(line(queries), (queries - mean) @ direction + middle, atol=1e-6)


def test_ratings_are_of_documents_not_seen(rng: np.random.Generator) -> None:
    """Noise of a document that many dimensions could learn by heart tells nothing of another."""
    d = 200
    own = rng.normal(size=(20, d))

    def noise(first: int) -> Float32:
        return np.repeat(own[first : first + 10], 20, axis=0).astype(np.float32)

    home = asked(made(rng, 200, near=1, right=0.5), noise(0))
    foreign = asked(made(rng, 200, near=1, right=0.5), noise(10))
    table = both(home, foreign)
    line, told = fit_likeness(table, np.arange(400))
    assert line is not None
    by_heart = line(table.sample.evidence.queries)
    assert by_heart[:200].min() > by_heart[200:].max()
    gaps = [float(r[:200].mean() - r[200:].mean()) for r in (by_heart, told)]
    assert abs(gaps[1]) < 0.3 * gaps[0]
    again, same = fit_likeness(table, np.arange(400))
    assert again is not None
    assert (again.direction.tobytes(), same.tobytes()) == (line.direction.tobytes(), told.tobytes())


@pytest.mark.parametrize("documents", [2, 7, 8])
def test_few_documents_are_not_cut(rng: np.random.Generator, documents: int) -> None:
    """Where a document moves, the line that rates it does not: it saw nothing of the document."""
    home = asked(made(rng, 160, near=1, right=0.5, documents=documents), about(rng, 1, 160))
    foreign = asked(made(rng, 160, near=1, right=0.5, documents=documents), about(rng, -1, 160))
    table = both(home, foreign)
    queries, one = table.sample.evidence.queries, table.sample.documents == 1
    assert queries is not None
    still, told, lines = queries.copy(), [], []
    for shift in (0, 5, 50):
        queries[:] = still
        queries[one, 1] += shift
        line, ratings = fit_likeness(table, np.arange(320))
        assert line is not None
        told.append(ratings[one])
        lines.append(line.direction[1])
    assert abs(lines[2]) < 0.9 * abs(lines[1])
    np.testing.assert_allclose((told[2] - told[0]) / 50, (told[1] - told[0]) / 5, atol=1e-6)


def test_one_kind_of_text_gives_none(rng: np.random.Generator) -> None:
    home = asked(made(rng, 60, near=1, right=0.5), about(rng, 1, 60))
    foreign = asked(made(rng, 40, near=1, right=0.5), about(rng, -1, 40))
    table = both(home, foreign)
    for rows in (np.arange(60), np.arange(60, 100)):
        assert fit_likeness(table, rows)[0] is None
    unknown = both(home, replace(foreign, evidence=replace(foreign.evidence, queries=None)))
    assert fit_likeness(unknown, np.arange(100))[0] is None
    assert learn(unknown, np.arange(100), 1.0).likeness is None


def test_a_gate_keeps_silent_by_the_query_alone(rng: np.random.Generator) -> None:
    """Neighbours are as near and as agreed at home and elsewhere, but wrong elsewhere."""
    home = asked(made(rng, 600, near=1, right=0.9, agreed=True), about(rng, 2, 600))
    foreign = asked(made(rng, 300, near=1, right=0.0, agreed=True), about(rng, -2, 300))
    gate = learn(both(home, foreign), np.arange(900), 1.0)
    new = asked(made(rng, 200, near=1, right=0.9, agreed=True), about(rng, 2, 200))
    strange = asked(made(rng, 200, near=1, right=0.0, agreed=True), about(rng, -2, 200))
    assert gate(new.evidence).sum(axis=1).mean() > 0.7
    assert gate(strange.evidence).sum(axis=1).mean() < 0.15


# -- the gate -------------------------------------------------------------------------------------


def test_what_it_reads(rng: np.random.Generator) -> None:
    line = Likeness(np.array([2.0, -1.0]), 0.5)
    assert line(np.array([[1, 1], [0, 3]], np.float32)).tolist() == [1.5, -2.5]
    gate = random_gate(rng, dimension=2)
    rows = evidence([[1.0, 2.0]])
    with pytest.raises(UsageError, match="reads queries of 2 dimensions, not none"):
        gate(rows)
    with pytest.raises(UsageError, match="reads queries of 2 dimensions, not 3"):
        gate(replace(rows, queries=np.zeros((1, 3), np.float32)))
    with pytest.raises(UsageError, match="do not fit"):
        replace(gate, likeness=None)


def test_kept_and_read_it_is_the_same(rng: np.random.Generator) -> None:
    gate = random_gate(rng, dimension=4)
    kept = json.loads(json.dumps(policy_to_json(gate)))
    again = policy_from_json(kept)
    assert isinstance(again, Gate)
    rows = evidence(np.sort(rng.random((20, 5)), axis=1), rng.integers(0, 5, (20, 5)))
    rows = replace(rows, queries=rng.normal(size=(20, 4)).astype(np.float32))
    assert again(rows).tobytes() == gate(rows).tobytes()
    # what was kept before there was a likeness
    old = policy_to_json(random_gate(rng))
    del old["likeness"]
    assert isinstance(before := policy_from_json(old), Gate)
    assert before.likeness is None


def test_rows_keep_their_queries(rng: np.random.Generator) -> None:
    rows = evidence([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    queries = rng.normal(size=(3, 2)).astype(np.float32)
    rows = replace(rows, queries=queries)
    for part in (rows[1:], rows[np.array([1, 2])], rows.nearest(1)[1:]):
        assert part.queries is not None
        assert part.queries.tolist() == queries[1:].tolist()


# -- everywhere -----------------------------------------------------------------------------------

CORPUS = {f"{name}.txt": f"the creditor shall disclose {name} to the consumer" for name in "abcd"}


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return LanguageModel.wrap(tiny_model("llama"), tokenizer, window=64)


@pytest.fixture(scope="module", params=[None, 5], ids=["raw", "mapped"])
def stores(lm: LanguageModel, request: pytest.FixtureRequest) -> list[Datastore]:
    """Two of one key space, which may have fewer dimensions than hidden states."""
    hidden = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    key_map = None if request.param is None else fit(hidden, request.param)
    made = []
    for part in (CORPUS, {"e.txt": "the consumer may rescind the contract"}):
        store = Datastore.open_or_create("memory:", lm.manifest().mapping(key_map))
        ingest(texts(part), lm, store)
        made.append(store)
    return made


def test_queries_are_in_the_key_space(stores: list[Datastore], rng: np.random.Generator) -> None:
    hidden = rng.normal(size=(3, 32)).astype(np.float32)
    keys, pool = stores[0].keys(hidden), Pool(stores)
    apart = pool.search_each(hidden, 4, within=[None, None])
    for found in (stores[0].search(hidden, 4), pool.search(hidden, 4), *apart):
        assert found.queries is not None
        assert found.queries.tolist() == keys.tolist()


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_decoding_sees_what_evaluation_sees(
    lm: LanguageModel, stores: list[Datastore], rng: np.random.Generator, pooled: bool
) -> None:
    store: Datastore | Pool = Pool(stores) if pooled else stores[0]
    size = stores[0].keys(np.zeros((1, stores[0].manifest.dimension), np.float32)).shape[1]
    seen: list[Evidence] = []
    gate = random_gate(rng, dimension=size)

    @dataclass(frozen=True)
    class Watched:
        name: str = "watched"
        scales: tuple[float, ...] = gate.scales

        def __call__(self, evidence: Evidence) -> Float64:
            seen.append(evidence)
            return gate(evidence)

    mixture = Mixture(12, 2.0, Watched())
    text = "the creditor may rescind the contract"
    result = evaluate(texts({"new": text}), lm, store, mixture)
    (scored,) = seen
    assert scored.queries is not None
    ids = [lm.document_start, *lm.encode(text).tolist()]
    knn = KnnLM(lm).use(store, mixture)
    log_p = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    knn.off()
    mixed = log_p[torch.arange(len(ids) - 1), ids[1:]]
    assert result.scores.mixture_nll == pytest.approx(-float(mixed.sum()), rel=1e-4)
    assert seen[-1].queries is not None
    np.testing.assert_allclose(seen[-1].queries[: len(ids) - 1], scored.queries, atol=1e-4)
    assert gate.likeness is not None
    assert np.ptp(gate.likeness(scored.queries)) > 0
