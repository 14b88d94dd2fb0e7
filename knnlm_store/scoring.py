"""(torch) One forward pass over held-out windows: what the model makes of each new position.

Only the targets' and the neighbours' probabilities are kept; no distribution over the vocabulary
lives longer than its pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knnlm_store.interpolation import Float64
from knnlm_store.mixing import entropy_and_top
from knnlm_store.mixture import Evidence
from knnlm_store.models import LanguageModel, to_float64, to_numpy
from knnlm_store.values import Float32, Int64, Neighbours
from knnlm_store.windows import Batch

_LOGIT_CELLS = 64 * 1024 * 1024  # float32 logits turned into log-probabilities at once: 256 MB


@dataclass(frozen=True, slots=True)
class Scored:
    """The q new positions of a batch, window after window.

    keys: hidden states, float32 `[q, d]`. targets: int64 `[q]`. log_probs: log p_LM of the
    targets, float64 `[q]`. entropy, top: see Evidence, `[q]`.
    """

    keys: Float32
    targets: Int64
    log_probs: Float64
    entropy: Float64
    top: Float64
    _logits: Tensor
    _totals: Tensor

    def evidence(self, found: Neighbours) -> Evidence:
        """Put the neighbours of `keys` beside the model's view of them."""
        return Evidence.of(found, self.log_lm(found), self.entropy, self.top)

    def log_lm(self, found: Neighbours) -> Float64:
        """Log p_LM of each neighbour's token, float64 `[q, k]`; see Evidence."""
        width = self._logits.shape[1]
        device = self._logits.device
        known = torch.from_numpy(np.clip(found.tokens, 0, width - 1)).to(device)
        at_tokens = to_float64(_gather(self._logits, known) - self._totals)
        strange = (found.tokens < 0) | (found.tokens >= width)
        return np.where(strange, -np.inf, at_tokens)


@torch.inference_mode()
def score_batch(model: LanguageModel, batch: Batch[Any]) -> Scored:
    """Run a batch through the plain model."""
    input_ids, mask = model.tensors(batch)
    width = input_ids.shape[1]
    keep = width - min(w.new - w.begin for w in batch.windows)
    with model.tap.private():
        logits, hidden = _logits_and_hidden(model, input_ids, mask, keep)
    rows = [
        (row, window.new - window.begin, window.end - window.begin)
        for row, window in enumerate(batch.windows)
    ]
    shift = width - logits.shape[1]
    picked = torch.cat([logits[row, a - shift : b - shift] for row, a, b in rows])
    keys = to_numpy(torch.cat([hidden[row, a:b] for row, a, b in rows]))
    totals, entropy, top = _summed(picked)
    targets = np.concatenate([w.targets for w in batch.windows])
    at_targets = _gather(picked, torch.from_numpy(targets)[:, None].to(picked.device)) - totals
    return Scored(keys, targets, to_float64(at_targets)[:, 0], entropy, top, picked, totals)


def _logits_and_hidden(
    model: LanguageModel, input_ids: Tensor, mask: Tensor | None, keep: int
) -> tuple[Tensor, Tensor]:
    options = {"logits_to_keep": keep} if model.model._supports_logits_to_keep() else {}
    output = model.model(
        input_ids=input_ids, attention_mask=mask, use_cache=False, return_dict=True, **options
    )
    hidden = model.tap.take(len(input_ids))
    missing = input_ids.shape[1] - hidden.shape[1]
    if missing:  # lm_head_input is cut by logits_to_keep as well
        hidden = torch.nn.functional.pad(hidden, (0, 0, missing, 0))
    return output.logits, hidden


def _summed(logits: Tensor) -> tuple[Tensor, Float64, Float64]:
    """Logsumexp `[q, 1]`, entropy `[q]` and log of the top probability `[q]`, in pieces."""
    rows = max(1, _LOGIT_CELLS // logits.shape[1])
    totals, entropies, tops = [], [], []
    for part in torch.split(logits, rows):
        wide = part.float()
        totals.append(torch.logsumexp(wide, -1, keepdim=True))
        entropy, top = entropy_and_top(wide, totals[-1])
        entropies.append(entropy)
        tops.append(top)
    return torch.cat(totals), np.concatenate(entropies), np.concatenate(tops)


def _gather(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(1, tokens).float()
