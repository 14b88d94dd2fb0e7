"""(torch) Loads a causal language model with its tokenizer, and takes its fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knnlm_store.errors import ModelError, UsageError
from knnlm_store.interpolation import Float64
from knnlm_store.keys import KeyPoint, KeyTap, find_key_point
from knnlm_store.manifest import Manifest
from knnlm_store.values import Float32, Int64
from knnlm_store.windows import Batch

_log = logging.getLogger(__name__)

DEFAULT_WINDOW = 1024
_PROBE = "On 3 May 1984 the committee wrote: naïve methods, once measured, rarely survive."


@dataclass
class LanguageModel:
    """A Hugging Face causal LM, its tokenizer, and the tap on its key point."""

    model: Any
    tokenizer: Any
    tap: KeyTap
    window: int
    document_start: int

    @classmethod
    def wrap(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        key: str = "last_ffn_input",
        window: int | None = None,
    ) -> LanguageModel:
        """Take a loaded model; `window` defaults to 1024 or the model's limit if lower.

        Raises ModelError without a tokenizer, UsageError for an unknown key point or a window
        that the model cannot read.
        """
        if tokenizer is None:
            raise ModelError("The model has no tokenizer.", hint="Pass one that fits it.")
        model.eval()
        limit = _limit(model)
        if window is not None and limit is not None and window > limit:
            raise UsageError(
                f"A window of {window} tokens exceeds the {limit} that the model can read.",
                hint=f"Use a window of {limit} or less.",
            )
        size = window or min(DEFAULT_WINDOW, limit or DEFAULT_WINDOW)
        tap = KeyTap(model, find_key_point(model, key))
        return cls(model, tokenizer, tap, size, _document_start(tokenizer))

    @property
    def name(self) -> str:
        """What the model was loaded as."""
        path = str(getattr(self.model, "name_or_path", "") or "")
        known = Path(path).name if path and Path(path).exists() else path
        return known or type(self.model).__name__

    @property
    def limit(self) -> int | None:
        """Tokens the model can read at once; None if it names no limit."""
        return _limit(self.model)

    @property
    def point(self) -> KeyPoint:
        """Where the keys are read."""
        return self.tap.point

    def encode(self, text: str) -> Int64:
        """Token ids of a document's text, int64 `[n]`, without special tokens.

        Text that looks like a special token is text: documents cannot forge one.
        """
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return np.asarray(encoded.input_ids, dtype=np.int64)

    def tensors(self, batch: Batch[Any]) -> tuple[Tensor, Tensor | None]:
        """Move a batch to the model's device; the mask is None where nothing is padded."""
        device = self.model.device
        input_ids = torch.from_numpy(batch.input_ids).to(device)
        if batch.attention_mask.all():
            return input_ids, None
        return input_ids, torch.from_numpy(batch.attention_mask).to(device)

    def keys(self, batch: Batch[Any]) -> Tensor:
        """Hidden states at the key point: a batch `[b, t]` to `[b, t, d]`, on the device."""
        return self.tap.read(self.model, *self.tensors(batch))

    def manifest(self) -> Manifest:
        """Describe this model as the manifest of a datastore it would write."""
        probe = self._probe()
        return Manifest(
            model=self.name,
            architecture=type(self.model).__name__,
            shape=_shape(self.model),
            precision=_precision(self.model),
            tokenizer=_tokenizer_digest(self.tokenizer, self.encode(_PROBE)),
            key=str(self.point),
            dimension=probe.shape[1],
            document_start=self.document_start,
            window=self.window,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            probe=probe,
        )

    def _probe(self) -> Float32:
        """Keys at the last 4 positions of the probe sentence, float32 `[<=4, d]`."""
        ids = np.concatenate([[self.document_start], self.encode(_PROBE)])[None, : self.limit]
        batch: Batch[None] = Batch([], ids, np.ones_like(ids))
        return to_numpy(self.keys(batch)[0, -4:])


def _shape(model: Any) -> dict[str, Any]:
    """Type and sizes of a model: what every version of transformers calls by one name."""
    config = model.config.get_text_config()
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {name: getattr(config, name, None) for name in names}


def _precision(model: Any) -> str:
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is None:
        return str(model.dtype).removeprefix("torch.")
    method = getattr(quantised, "quant_method", None) or "quantised"
    return str(getattr(method, "value", method))


def to_numpy(hidden: Tensor) -> Float32:
    """Bring hidden states to the host as float32."""
    keys: Float32 = hidden.to(device="cpu", dtype=torch.float32).numpy()
    return keys


def to_float64(values: Tensor) -> Float64:
    """Bring values to the host as float64; not every device has it."""
    array: Float64 = values.cpu().numpy().astype(np.float64)
    return array


def _limit(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _document_start(tokenizer: Any) -> int:
    """Pick the token that stands before every document.

    The tokenizer's BOS if it writes one itself; else the separator of GPT-like pretraining,
    `<|endoftext|>`, which chat models keep although their BOS marks a turn; else BOS or EOS.
    """
    written = tokenizer("a").input_ids[:1]
    if tokenizer.bos_token_id is not None and written == [tokenizer.bos_token_id]:
        return int(tokenizer.bos_token_id)
    separator = tokenizer.get_vocab().get("<|endoftext|>")
    for token in (separator, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _tokenizer_digest(tokenizer: Any, probe: Int64) -> str:
    content = [sorted(tokenizer.get_vocab().items()), probe.tolist()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    key: str = "last_ffn_input",
    window: int | None = None,
) -> LanguageModel:
    """Load a model by hub id, local folder or GGUF file.

    device: `auto` takes CUDA, then MPS, then the CPU. dtype: `auto` keeps the checkpoint's, or a
    name such as `bfloat16`; a GGUF file is read as float32 unless told. A token for the hub is
    taken from HF_TOKEN. Raises ModelError with what to try next.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, place = _locate(name)
    if revision:
        place["revision"] = revision
    if "gguf_file" in place and dtype == "auto":
        dtype = "float32"
    precision, where = _dtype(dtype), _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **place)
    except _failures() as error:
        raise _no_tokenizer(name, path, place, error) from error
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=precision, **place)
    except _failures() as error:
        raise _unloadable(name, error) from error
    return LanguageModel.wrap(model.to(where), tokenizer, key=key, window=window)


def _failures() -> tuple[type[Exception], ...]:
    """What transformers raises where files are missing, damaged or of another library."""
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """Tell a local folder, a GGUF file and a hub id apart: what transformers is to load."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / f).exists() for f in ("config.json", "adapter_config.json")):
            raise ModelError(
                f"The folder {name} holds no model: it has no config.json.",
                hint="Name a folder that save_pretrained wrote, or a GGUF file in it.",
            )
        return str(path), {}
    gguf = path.suffix == ".gguf"
    if path.exists():
        if gguf:
            return str(path.parent), {"gguf_file": path.name}
        raise ModelError(f"{name} is no model.", hint="Name its folder, or a GGUF file.")
    if gguf or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no model at {name}.", hint="Check the path.")
    return name, {}


def _no_tokenizer(name: str, path: str, place: dict[str, Any], error: Exception) -> ModelError:
    """Make the error of a tokenizer that does not load, or of a model that is not there at all."""
    from transformers import AutoConfig

    why = f": {_first_line(error)}"
    if "gguf_file" not in place:
        try:
            AutoConfig.from_pretrained(path, **place)
        except _failures() as cause:
            return _unloadable(name, cause)
        files = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece")
        folder = Path(path)
        if folder.is_dir() and not any(f.name.startswith(files) for f in folder.iterdir()):
            why = ""  # transformers' own message misleads then
    return ModelError(
        f"No tokenizer comes with {name}{why}.",
        hint="Save one there with tokenizer.save_pretrained, or name another model.",
    )


def _unloadable(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"The model {name} cannot be loaded: {_first_line(error)}.",
        hint="Check the name, --revision and HF_TOKEN, or give a local folder.",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .:")


def _dtype(name: str) -> Any:
    if name == "auto":
        return "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"{name!r} is no dtype.", hint="Use float32, bfloat16 or float16.")
    return dtype


def _device(name: str) -> torch.device:
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device {name!r} cannot be used: {_first_line(error)}.",
            hint="Try --device cpu.",
        ) from error
    return device
