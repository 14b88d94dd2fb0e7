"""Tiny random models of many architectures, a tokenizer, and text, all made in code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mixtral": {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {**_SIZES, "final_logit_softcapping": 5.0, "sliding_window": 64},
    "granite": {**_SIZES, "logits_scaling": 4.0},
    "cohere": {**_SIZES, "logit_scale": 0.25},
    "gpt_neox": {k: v for k, v in _SIZES.items() if k not in ("num_key_value_heads", "head_dim")},
}
ARCHITECTURES = (
    "gpt2",
    "llama",
    "qwen3",
    "gemma2",
    "opt",
    "mixtral",
    "cohere",
    "granite",
    "gpt_neox",
)


def tiny_model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of two layers; its logits are spread out enough to choose by."""
    config = AutoConfig.for_model(
        architecture,
        **{
            "vocab_size": VOCABULARY,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            **_SPECIAL.get(architecture, _SIZES),
            **changes,
        },
    )
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4)
    model.generation_config.pad_token_id = 2
    return model.eval()


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of 259 tokens: BOS, EOS, PAD and the bytes."""
    specials = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
