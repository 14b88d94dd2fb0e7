"""Several datastores on the command line: what cannot be, told before a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli_several_support import DIARY, LAW, OTHER, SET, TWO, make, nll
from tests.cli_support import run


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


def failed(*options: object) -> tuple[int, str, str]:
    """How both commands fail, which must be the same; the model is missing, and never missed."""
    gone = ("--model", "./no-such-model", *options)
    tried = [run("eval", *gone, "held-out").failure(), run("generate", *gone, "The").failure()]
    assert tried[0] == tried[1]
    return tried[0]


ORDER = "Give one for each --store, in their order."
NUMBERS = "For example: --blend 0.6,0.3"


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("--blend", "0.5"), "--blend names 1 weights for 2 datastores.", ORDER),
        (("--blend", "0.5,0.2,0.1"), "--blend names 3 weights for 2 datastores.", ORDER),
        (
            ("--blend", "half,half"),
            "--blend takes numbers with commas between them, not 'half,half'.",
            NUMBERS,
        ),
        (("--blend", ""), "--blend takes numbers with commas between them, not ''.", NUMBERS),
        (
            ("--blend", "0.5,0.6"),
            "A blend's weights must be 0 or more and at most 1 in sum, not 1.1.",
            "What they leave of 1 is the plain model's.",
        ),
        (
            ("--blend", "nan,0.6"),
            "A blend's weights must be 0 or more and at most 1 in sum, not nan.",
            "What they leave of 1 is the plain model's.",
        ),
        (
            ("--blend", "0.5,0.2", "--blend-from", "valid"),
            "--blend gives the weights that --blend-from would fit.",
            "Leave one of them out.",
        ),
        (
            ("--blend-from", "-"),
            "--blend-from does not read standard input.",
            "Name a folder or a file.",
        ),
        (
            ("--policy", "learned"),
            "Datastores that are pooled have no learned policy: it is fitted to one alone.",
            "Use --policy ratio, or --blend-from TEXT, in which each keeps its own.",
        ),
        (
            ("--policy", "learned", "--blend", "0.5,0.5"),
            f"{LAW} has no learned policy that was fitted for it.",
            "Fit one with knnlm-store tune, and leave --k and --temperature out.",
        ),
        (
            ("--k", 0),
            "k must be at least 1, not 0.",
            "1024 is a good first choice; for the plain model set lambda to 0.",
        ),
    ],
)
def test_options_that_cannot_be(options: tuple[object, ...], message: str, hint: str) -> None:
    assert failed(*TWO, *options) == (2, message, hint)


@pytest.mark.parametrize("option", [("--blend", "0.5"), ("--blend-from", "valid")])
def test_one_datastore_is_no_blend(option: tuple[str, str]) -> None:
    message = f"{option[0]} needs more than one datastore."
    hint = f"Add another --store, or leave {option[0]} out."
    assert failed("--store", LAW, *option) == (2, message, hint)


def test_one_datastore_twice() -> None:
    hint = "Name each datastore once; its entries would count twice."
    for again in (LAW, "faiss:./stores/law", f"faiss:{os.getcwd()}/stores/law"):
        told = failed("--store", LAW, "--store", DIARY, "--store", again)
        assert told == (2, f"{again} is named twice.", hint)


def test_what_cannot_be_pooled() -> None:
    code, message, hint = failed("--store", LAW, "--store", OTHER)
    assert (code, hint) == (1, "Pool what one model wrote with one key point.")
    assert message == f"{OTHER} cannot be pooled with {LAW}: their key differs."


def test_keys_of_two_transforms_are_blended_only(made: Path) -> None:
    raw = f"faiss:{made}/stores/raw"
    assert run("ingest", "--store", raw, "--transform", "none", "diary").code == 0
    raw = "faiss:stores/raw"
    code, message, hint = failed("--store", LAW, "--store", raw)
    assert (code, message.startswith(f"{raw} maps keys by the transform none, not by")) == (1, True)
    assert hint.endswith("or mix the two with weights, as a Blend.")
    blended = nll("--store", LAW, "--store", raw, *SET, "--blend", "0,1")
    assert blended == pytest.approx(nll("--store", raw, *SET), rel=1e-9)
    assert blended != pytest.approx(nll("--store", DIARY, *SET), rel=1e-4)


def test_a_datastore_that_is_missing() -> None:
    code, message, _ = failed("--store", LAW, "--store", "faiss:stores/none")
    assert (code, message) == (1, f"There is no datastore at {os.getcwd()}/stores/none.")


def test_several_and_the_short_form() -> None:
    code, message, _ = failed(*TWO, "--backend", "faiss", "--name", "law")
    assert code == 2
    assert message.startswith("--store names the whole place;")


def test_policies_are_not_compared_in_a_blend() -> None:
    message = "Policies are not compared in a blend: its weights suit one of them."
    hint = "Name one --policy, or compare without --blend and --blend-from."
    for policies in (("all",), ("fixed", "ratio")):
        named = [word for name in policies for word in ("--policy", name)]
        done = run("eval", *TWO, "--blend", "0.5,0.5", *named, "held-out")
        assert done.failure() == (2, message, hint)


def test_text_that_cannot_be_fitted_to(made: Path) -> None:
    (made / "empty").mkdir(exist_ok=True)
    (made / "empty" / "bad.txt").write_bytes(b"\xff")
    done = run("eval", *TWO, *SET, "--blend-from", "empty", "held-out")
    assert (done.code, done.out) == (1, "")
    problem, message, hint = done.err.splitlines()
    assert problem == "failed: empty/bad.txt: The bytes are not utf-8: 0xff at offset 0."
    assert message == "error: There was no text to fit on."
    assert hint == "Name files that hold text."


def test_a_blend_needs_one_model_and_key_point() -> None:
    done = run("eval", "--store", LAW, "--store", OTHER, *SET, "held-out", "--blend", "0.5,0.5")
    code, message, _ = done.failure()
    assert (code, OTHER in message, "lm_head_input" in message) == (1, True, True)
