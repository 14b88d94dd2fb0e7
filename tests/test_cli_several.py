"""Several datastores on the command line: pooled, or blended by weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from knnlm_store import models
from knnlm_store.blending import fit_blend
from knnlm_store.calibrated import Calibration
from knnlm_store.calibration import default_mixture
from knnlm_store.corpus import Corpus, ReadOptions
from knnlm_store.datastore import Datastore
from knnlm_store.memories import mixture_for
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.several import Pool
from tests.cli_several_support import BOTH, DIARY, LAW, SET, TWO, evaluated, make, nll
from tests.cli_support import Run, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("several")
    make(place, saved_model)
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)


def generated(*options: object, prompt: str = "The heron") -> Run:
    return run("generate", "--max-new-tokens", 12, *options, prompt)


def text(*options: object, prompt: str = "The heron") -> str:
    made: str = generated(*options, "--json", prompt=prompt).json()["generations"][0]["text"]
    return made


@contextmanager
def stores() -> Iterator[list[Datastore]]:
    with Datastore.open(LAW) as law, Datastore.open(DIARY) as diary:
        yield [law, diary]


@contextmanager
def calibrated(uri: str, mixture: Mixture) -> Iterator[None]:
    """For a while, a datastore that was tuned."""
    with Datastore.open(uri) as store:
        Calibration.of(store, {mixture.policy.name: mixture}, "fixed", "today", {}).write(store)
    try:
        yield
    finally:
        with Datastore.open(uri) as store:
            store.backend.delete_records(["calibration"])


# -- pooled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [16, 1024])
@pytest.mark.parametrize("policy", [("--lmbda", 0.4), ("--policy", "ratio")])
def test_a_pool_scores_as_one_datastore_of_both(k: int, policy: tuple[object, ...]) -> None:
    settings = ("--k", k, "--temperature", 2, *policy)
    report = evaluated(*TWO, *settings)
    pooled, alone = report["mixture"]["nll"], [nll("--store", s, *settings) for s in (LAW, DIARY)]
    assert pooled == pytest.approx(nll("--store", BOTH, *settings), rel=1e-6)
    assert all(abs(pooled - each) > 0.1 for each in alone)
    assert [each["uri"] for each in report["stores"]] == [LAW, DIARY]
    assert all(each["entries"] > 0 for each in report["stores"])
    assert "store" not in report
    assert (report["settings"]["k"], report["settings"]["temperature"]) == (k, 2)


def test_a_pool_is_mixed_in_as_from_python() -> None:
    with stores() as opened:
        expected = mixture_for(Pool(opened))
    done = run("eval", *TWO, "held-out", "--json")
    settings = done.json()["settings"]
    assert settings == {
        "k": expected.k,
        "temperature": expected.temperature,
        "temperature_from": "datastore",
        "lmbda": None,
        "policy": "ratio",
        "calibrated": False,
    }
    assert done.err.splitlines() == [
        f"pooled, not tuned: ratio policy, temperature {expected.temperature:.4g}, the median of "
        "what each datastore's distances give"
    ]
    assert evaluated(*TWO, "--policy", "fixed")["settings"]["lmbda"] == 0.25
    assert run("eval", *TWO, "held-out", "--lmbda", 0, "--json").err == ""


def test_a_calibration_of_one_is_not_that_of_a_pool() -> None:
    with calibrated(DIARY, Mixture(3, 7.0, Fixed(0.9))):
        done = run("eval", *TWO, "held-out", "--json")
        said = run("eval", *TWO, "held-out", "--policy", "ratio", "--json")
    assert done.json()["settings"] == evaluated(*TWO)["settings"]
    note = "warning: Calibrations are not used: each is of one datastore alone."
    assert done.err.splitlines()[1:] == [note]
    assert note not in said.err


def test_generate_pools() -> None:
    sure = ("--k", 1, "--temperature", 1, "--lmbda", 0.999)
    for prompt, store in (("The creditor", LAW), ("and a heron", DIARY)):
        both = generated(*TWO, *sure, prompt=prompt)
        assert both.err == ""
        (line,) = both.out.splitlines()
        expected = text("--store", BOTH, *sure, prompt=prompt)
        assert line == prompt + expected
        assert expected == text("--store", store, *sure, prompt=prompt)
        (other,) = {LAW, DIARY} - {store}
        assert expected != text("--store", other, *sure, prompt=prompt)
    report = generated(*TWO, *sure, "--json").json()
    assert [each["name"] for each in report["stores"]] == ["law", "diary"]
    assert report["settings"]["k"] == 1


def test_policies_are_compared_on_a_pool() -> None:
    report = evaluated(*TWO, "--policy", "all", "--lmbda", 0.6)
    assert list(report["policies"]) == ["fixed", "ratio"]
    singles = {"fixed": ("--lmbda", 0.6), "ratio": ("--policy", "ratio")}
    for name, options in singles.items():
        assert report["policies"][name]["nll"] == pytest.approx(nll(*TWO, *options), rel=1e-9)


def test_summary_names_several() -> None:
    done = run("eval", *TWO, *SET, "held-out")
    assert done.out.splitlines()[2].startswith("with datastores ")
    assert len({len(line) for line in done.out.splitlines()[:3]}) == 1


# -- blended -----------------------------------------------------------------------------------


def test_weights_of_a_blend() -> None:
    """A blend of one alone is that one; of lambda 1 each, the mean of probabilities."""
    assert nll(*TWO, *SET, "--blend", "1,0") == pytest.approx(nll("--store", LAW, *SET), rel=1e-9)
    assert nll(*TWO, *SET, "--blend", "0,1") == pytest.approx(nll("--store", DIARY, *SET), rel=1e-9)
    report = evaluated(*TWO, *SET, "--blend", "0.5, 0.25")
    assert report["mixture"]["nll"] != pytest.approx(nll(*TWO, *SET), rel=1e-3)
    assert report["weights_from"] == "user"
    assert [each["weight"] for each in report["stores"]] == [0.5, 0.25]
    assert [each["settings"]["lmbda"] for each in report["stores"]] == [0.4, 0.4]
    plain = evaluated(*TWO, *SET, "--blend", "0,0")
    assert plain["mixture"]["nll"] == plain["plain"]["nll"]


def test_each_part_of_a_blend_is_mixed_in_as_it_is_alone() -> None:
    with calibrated(DIARY, Mixture(3, 7.0, Fixed(0.9))):
        done = run("eval", *TWO, "held-out", "--blend", "0.3,0.6", "--json")
        report = done.json()
        alone = [evaluated("--store", store)["settings"] for store in (LAW, DIARY)]
    assert [each["settings"] for each in report["stores"]] == alone
    assert [each["calibrated"] for each in alone] == [False, True]
    assert done.err.splitlines() == [
        f"{LAW}: not tuned: ratio policy, temperature {alone[0]['temperature']:.4g} derived from "
        "the datastore's distances; knnlm-store tune fits them",
        f"{DIARY}: as tuned: fixed policy, k 3, temperature 7",
    ]


def test_weights_fitted_on_text(saved_model: Path) -> None:
    with stores() as opened:
        manifest = opened[0].manifest
        model = models.load(str(saved_model), key=manifest.key, window=manifest.window)
        parts = [(store, default_mixture(store)) for store in opened]
        expected = fit_blend(Corpus(["valid"], ReadOptions()), model, parts).tolist()
    assert all(weight > 0.02 for weight in expected)
    done = run("eval", *TWO, "--blend-from", "valid", "held-out", "--json")
    report = done.json()
    weights = [each["weight"] for each in report["stores"]]
    assert weights == pytest.approx(expected, rel=1e-6)
    assert report["weights_from"] == "text"
    told = (
        f"weights fitted: {LAW} {expected[0]:.3f}, {DIARY} {expected[1]:.3f}, "
        f"plain model {1 - sum(expected):.3f}"
    )
    assert done.err.splitlines()[-1] == told
    given = nll(*TWO, "--blend", ",".join(map(str, weights)))
    assert report["mixture"]["nll"] == pytest.approx(given, rel=1e-6)
    streamed = generated(*TWO, "--blend-from", "valid")
    assert streamed.err.splitlines()[-1] == told
    again = generated(*TWO, "--blend-from", "valid", "--json").json()
    assert [each["weight"] for each in again["stores"]] == pytest.approx(expected, rel=1e-6)
    assert streamed.out == f"The heron{again['generations'][0]['text']}\n"


def test_generate_blends() -> None:
    sure = ("--k", 1, "--temperature", 1, "--lmbda", 0.999)
    alone = [text("--store", store, *sure) for store in (LAW, DIARY)]
    assert alone[0] != alone[1]
    blended = [text(*TWO, *sure, "--blend", weights) for weights in ("1,0", "0,1")]
    assert blended == alone
    plain = text("--store", LAW, "--lmbda", 0)
    assert text(*TWO, *sure, "--blend", "0,0") == plain not in alone
