"""The manifest: what a datastore is, and the refusal of whatever does not fit it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreMismatch, StoreNotFound, UsageError
from knnlm_store.ingest import ingest
from knnlm_store.manifest import FORMAT, Manifest
from knnlm_store.models import LanguageModel
from tests.ingest_support import corpus, held, new_store, prose
from tests.tiny import tiny_model


@pytest.fixture
def language_model(model: Any, tokenizer: Any) -> LanguageModel:
    model.name_or_path = "some/model"
    return LanguageModel.wrap(model, tokenizer, window=32)


@pytest.fixture
def manifest(language_model: LanguageModel) -> Manifest:
    return language_model.manifest()


@pytest.fixture
def uri(language_model: LanguageModel, tmp_path: Path) -> str:
    """A datastore with one document, closed."""
    with new_store(language_model, f"faiss:{tmp_path}/x") as store:
        ingest(corpus({"a": prose(1, 20)}), language_model, store)
    return str(store.location)


def contents(uri: str) -> tuple[dict[str, bytes], list[int]]:
    with Datastore.open(uri) as store:
        return dict(store.backend.scan_records("")), held(store).ids.tolist()


def test_round_trip(manifest: Manifest) -> None:
    """Also of what an unknown field of the same format says: nothing."""
    records = manifest.records()
    read = Manifest.read(records, "here")
    assert read == manifest
    np.testing.assert_array_equal(read.probe, manifest.probe)
    assert manifest.probe.shape == (4, 32)
    assert manifest.dimension == 32
    assert (manifest.window, manifest.document_start) == (32, 0)
    assert manifest.architecture == "LlamaForCausalLM"
    more = json.loads(records["manifest"]) | {"later": 1}
    assert Manifest.read(records | {"manifest": json.dumps(more).encode()}, "here") == manifest


def test_a_datastore_describes_itself(language_model: LanguageModel, uri: str) -> None:
    """Whoever knows the place alone can open it."""
    with Datastore.open(uri) as store:
        assert store.manifest == replace(language_model.manifest(), created=store.manifest.created)
        store.require(language_model.manifest())


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("key", "lm_head_input"),
        ("tokenizer", "0123456789abcdef"),
        ("document_start", 1),
    ],
)
def test_each_difference_is_named(manifest: Manifest, uri: str, field: str, other: Any) -> None:
    before = contents(uri)
    mine = getattr(manifest, field)
    changed = replace(manifest, **{field: other})
    with pytest.raises(StoreMismatch) as caught:
        Datastore.open_or_create(uri, changed)
    assert caught.value.field == field
    assert str(caught.value) == (
        f"{uri} was written by the model some/model with {field} {mine!r}, not {other!r}."
    )
    assert caught.value.hint == "Use that model and its settings, or ingest under another --name."
    assert contents(uri) == before


def test_another_key_point(model: Any, tokenizer: Any, uri: str) -> None:
    lm = LanguageModel.wrap(model, tokenizer, key="lm_head_input", window=32)
    with pytest.raises(StoreMismatch, match=r"with key 'last_ffn_input', not 'lm_head_input'"):
        new_store(lm, uri)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("hidden_size", {"hidden_size": 64, "head_dim": 16}),
        ("num_hidden_layers", {"num_hidden_layers": 3}),
        ("vocab_size", {"vocab_size": 400}),
    ],
)
def test_a_model_of_another_shape(
    tokenizer: Any, uri: str, field: str, changes: dict[str, Any]
) -> None:
    before = contents(uri)
    lm = LanguageModel.wrap(tiny_model("llama", **changes), tokenizer, window=32)
    with pytest.raises(StoreMismatch, match=f"with {field} ") as caught:
        new_store(lm, uri)
    assert caught.value.field == field
    assert contents(uri) == before


def rounded(bits: int, quantised: bool) -> Any:
    """The tiny model with its weights rounded to so many bits, four rows at a scale."""
    model = tiny_model("llama")
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                scale = weights.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                weights.copy_((weights / scale).round() * scale)
    if quantised:
        model.config.quantization_config = {"quant_method": "test"}
    return model


def test_a_quantised_model_of_the_same_checkpoint_warns(
    tokenizer: Any, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the same distance without a quantisation is another checkpoint, a fine-tune say."""
    plain = LanguageModel.wrap(rounded(5, quantised=False), tokenizer, window=32).manifest()
    with Datastore.open(uri) as store:
        assert 0.05 < store.manifest.probe_distance(plain) < 0.5
    with pytest.raises(StoreMismatch) as caught:
        Datastore.open_or_create(uri, plain)
    assert caught.value.field == "model"
    lm = LanguageModel.wrap(rounded(5, quantised=True), tokenizer, window=32)
    with caplog.at_level(logging.WARNING), new_store(lm, uri):
        assert "find its neighbours better" in caplog.text


def test_same_dimension_is_not_same_space(tokenizer: Any, uri: str) -> None:
    before = contents(uri)
    lm = LanguageModel.wrap(tiny_model("llama", seed=1), tokenizer, window=32)
    lm.model.name_or_path = "other/model"
    with pytest.raises(StoreMismatch) as caught:
        new_store(lm, uri)
    assert caught.value.field == "model"
    assert str(caught.value).startswith(
        f"{uri} was written by another model (some/model, float32); "
        "keys of other/model (float32) lie elsewhere, "
    )
    assert contents(uri) == before


def test_a_model_that_gives_nan(manifest: Manifest, uri: str) -> None:
    """No comparison with NaN is a likeness."""
    broken = replace(manifest, probe=manifest.probe * np.float32("nan"))
    with pytest.raises(StoreMismatch, match="lie elsewhere"):
        Datastore.open_or_create(uri, broken)


@pytest.mark.parametrize(("dtype", "warns"), [(torch.bfloat16, True), (torch.float32, False)])
def test_another_dtype_warns(
    tokenizer: Any,
    uri: str,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    warns: bool,
) -> None:
    lm = LanguageModel.wrap(tiny_model("llama").to(dtype), tokenizer, window=32)
    with caplog.at_level(logging.WARNING), new_store(lm, uri) as store:
        assert store.backend.count() == 20
    assert ("find its neighbours better" in caplog.text) is warns
    assert (len(caplog.records) == 1) is warns


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b'"', b"\xff\xfe"])
def test_a_corrupt_manifest(uri: str, damage: bytes) -> None:
    with Datastore.open(uri) as store:
        store.backend.put_records({"manifest": damage})
    with pytest.raises(StoreCorrupt) as caught:
        Datastore.open(uri)
    assert str(caught.value) == f"The manifest of {uri} cannot be read."
    assert caught.value.hint.endswith(f"knnlm-store rm {uri}")


def test_a_manifest_that_is_gone(uri: str) -> None:
    with Datastore.open(uri) as store:
        store.backend.delete_records(["manifest"])
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        Datastore.open(uri)


def test_a_truncated_probe(manifest: Manifest) -> None:
    """Wherever it was cut off."""
    records = manifest.records()
    for length in (0, 1, 7, 9, 30, 80, len(records["probe"]) - 1):
        cut = records | {"probe": records["probe"][:length]}
        with pytest.raises(StoreCorrupt, match=r"The manifest of here is incomplete\."):
            Manifest.read(cut, "here")
    with pytest.raises(StoreCorrupt, match="is incomplete"):
        Manifest.read({"manifest": records["manifest"]}, "here")
    with pytest.raises(StoreCorrupt, match="is incomplete"):
        Manifest.read(records | {"probe": b"PK\x03\x04" + bytes(40)}, "here")


@pytest.mark.parametrize("missing", ["key", "tokenizer", "dimension", "document_start", "window"])
def test_a_missing_field(manifest: Manifest, missing: str) -> None:
    records = manifest.records()
    fewer = {k: v for k, v in json.loads(records["manifest"]).items() if k != missing}
    with pytest.raises(StoreCorrupt, match="is incomplete"):
        Manifest.read(records | {"manifest": json.dumps(fewer).encode()}, "here")


def test_a_newer_format(manifest: Manifest, uri: str) -> None:
    newer = replace(manifest, format=FORMAT + 1)
    with Datastore.open(uri) as store:
        store.backend.put_records(newer.records())
    for opened in (Datastore.open, lambda u: Datastore.open_or_create(u, manifest)):
        with pytest.raises(StoreMismatch) as caught:
            opened(uri)
        assert caught.value.field == "format"
        assert str(caught.value) == f"{uri} has format 2; this version reads format 1."
        assert "pip install --upgrade" in caught.value.hint


def test_of_two_creators_the_first_counts(manifest: Manifest, uri: str) -> None:
    """Opening again keeps its time of creation."""
    with Datastore.open(uri) as store:
        created = store.manifest.created
    with Datastore.open_or_create(uri, replace(manifest, created="later")) as store:
        assert store.manifest.created == created


def test_storage_cannot_change(manifest: Manifest, uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        Datastore.open_or_create(uri, manifest, "int8")
    assert str(caught.value) == f"{uri} keeps keys as float32, not int8."
    assert "another --name than x" in caught.value.hint
    Datastore.open_or_create(uri, manifest).close()


def test_no_datastore(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound) as caught:
        Datastore.open(f"faiss:{tmp_path}/absent")
    assert f"knnlm-store ingest --store faiss:{tmp_path}/absent" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_info(language_model: LanguageModel, uri: str) -> None:
    with Datastore.open(uri) as store:
        info = store.info()
    told = {"entries": 20, "documents": 1, "dimension": 32, "window": 32, "format": 1}
    assert told.items() <= info.items()
    assert (info["uri"], info["backend"], info["name"]) == (uri, "faiss", "x")
    assert (info["key"], info["transform"], info["index"]) == ("last_ffn_input", "none", "exact")
    assert json.loads(json.dumps(info)) == info
    assert language_model.manifest().tokenizer not in info.values()
