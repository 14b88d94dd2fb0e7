"""Requests as lm-evaluation-harness makes them, and their answers by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from knnlm_store.datastore import Datastore
from knnlm_store.models import LanguageModel
from tests.ingest_support import held
from tests.reference import dense_mixture

K, TEMPERATURE = 25, 3.0


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


class Reference:
    """One forward pass a request, nothing padded or kept; the mixture dense, in float64."""

    def __init__(self, lm: LanguageModel, store: Datastore, lmbda: float) -> None:
        self.lm, self.entries, self.lmbda = lm, held(store), lmbda

    @torch.no_grad()
    def log_probs(self, tokens: Sequence[int], scored: int) -> np.ndarray[Any, Any]:
        """Log p over the vocabulary at the last `scored` positions, `[scored, v]`."""
        inputs = torch.tensor([tokens])
        logits = self.lm.model(inputs).logits[0].numpy()
        hidden = self.lm.tap.read(self.lm.model, inputs, None)[0].numpy()
        rows = [
            dense_mixture(logits[i], hidden[i], self.entries, K, TEMPERATURE, self.lmbda)
            for i in range(len(tokens) - scored, len(tokens))
        ]
        return np.stack(rows)

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log p of a continuation, and whether each of its tokens is the likeliest."""
        table = self.log_probs([*context, *continuation][:-1], len(continuation))
        total = float(table[np.arange(len(continuation)), list(continuation)].sum())
        return total, bool((table.argmax(1) == continuation).all())

    def greedy(self, context: Sequence[int], count: int) -> list[int]:
        """The likeliest `count` tokens, one after the other."""
        tokens = list(context)
        for _ in range(count):
            tokens.append(int(self.log_probs(tokens, 1)[0].argmax()))
        return tokens[len(context) :]
