"""The harness's model for Hugging Face checkpoints, with a datastore mixed in.

What the harness asks for is of two kinds. A loglikelihood is one forward pass, of which only the
continuation's positions are scored: only these are searched, those of a pass as one batch. Text is
made by `generate()`, where KnnLM's hook mixes every step.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from knnlm_store.calibration import log_settled, settle
from knnlm_store.errors import ModelError
from knnlm_store.generation import KnnLM
from knnlm_store.mixing import mix_rows
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store_lm_eval.arguments import Chosen

_log = logging.getLogger(__name__)

_LOGIT_CELLS = 64 * 1024 * 1024  # float32 logits mixed at once: 256 MB

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The harness's: the strings, tokens of the context, tokens of the continuation."""


@register_model("knnlm")
class KnnHFLM(HFLM):  # type: ignore[misc]
    """HFLM whose every probability is the mixture's.

    store: a URI, or an open Datastore that stays the caller's. k, temperature, lmbda: the mixture;
    by default as tuned, else 1024, the datastore's own, the ratio rule. Everything else is HFLM's.
    Raises UsageError for an argument that cannot be right, StoreMismatch if another model wrote the
    datastore. An error of the backend ends the evaluation: no number is the plain model's, unless
    lambda is 0, or tuning found that the datastore does not pay, of which a warning is logged.
    """

    def __init__(self, pretrained: Any, **arguments: Any) -> None:
        chosen, options = Chosen.split(arguments, HFLM, loaded=not isinstance(pretrained, str))
        self._store, opened = chosen.open()
        if opened:
            # the harness never closes a model
            self._finalizer = weakref.finalize(self, self._store.close)
        settled = settle(
            self._store, k=chosen.k, temperature=chosen.temperature, lmbda=chosen.lmbda
        )
        log_settled(self._store, settled)
        self._mixture, self._settings = settled.mixture, settled.settings()
        self._scored: _Scored | None = None
        self._measuring = False
        super().__init__(pretrained, **options)
        if self.backend != "causal":
            raise ModelError(
                f"{type(self.model).__name__} is not a causal language model.",
                hint="Evaluate it with --model hf.",
            )
        wrapped = LanguageModel.wrap(self.model, self.tokenizer, key=self._store.manifest.key)
        self.knnlm = KnnLM(wrapped)
        self.knnlm.use(self._store, self._mixture, timeout=None, fallback=False)
        self._tell_other_start()

    def get_model_info(self) -> dict[str, Any]:
        """Add the datastore, the mixture and what was searched to the report's `config`."""
        counted = self.knnlm.counters
        info: dict[str, Any] = super().get_model_info()
        info["knnlm_store"] = {
            "store": str(self._store.location),
            "entries": self._store.backend.count(),
            **self._settings,
            "searched": counted.searched,
            "mixed": counted.mixed,
        }
        return info

    def _tell_other_start(self) -> None:
        begins, expected = self.prefix_token_id, self._store.manifest.document_start
        if begins != expected:
            _log.warning(
                "Text without a context begins with token %d here, with %d in %s; "
                "prefix_token_id=%d would find its neighbours better.",
                begins,
                expected,
                self._store.location,
                expected,
            )

    # -- seams of HFLM -------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Request], *args: Any, **kwargs: Any) -> Any:
        """Note what is asked, so that the forward passes inside know their positions."""
        self._scored = _Scored(requests, self.max_length)
        try:
            return super()._loglikelihood_tokens(requests, *args, **kwargs)
        finally:
            self._scored = None

    def _detect_batch_size(self, *args: Any, **kwargs: Any) -> Any:
        """Try sizes without a search: these passes are for their memory, and score nothing."""
        self._measuring = True
        try:
            return super()._detect_batch_size(*args, **kwargs)
        finally:
            self._measuring = False

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Give logits of tokens `[b, t]`, `[b, t, v]`: mixed where scored, plain elsewhere.

        With lambda 0 they are HFLM's, bit for bit; else float32.
        """
        tap = self.knnlm.language_model.tap
        with tap.private():  # KnnLM's hook would search every position
            logits: Tensor = super()._model_call(inps, *args, **kwargs)
            hidden = tap.take(len(inps))
        if self._mixture.is_plain:
            return logits
        logits = logits.float()
        if self._measuring:
            return logits
        if self._scored is None:
            raise ModelError(
                "The harness runs the model outside of a loglikelihood request.",
                hint="knnlm-store is tested with the lm_eval of constraints-dev.txt.",
            )
        self._mix(logits, hidden, self._scored.positions(inps))
        return logits

    @torch.no_grad()
    def _mix(self, logits: Tensor, hidden: Tensor, wanted: Tensor) -> None:
        """Mix logits `[b, t, v]` in place by keys `[b, t, d]` where wanted, bool `[b, t]`."""
        queries = to_numpy(hidden[wanted.to(hidden.device)])
        found = self._store.search(queries, self._mixture.k)
        flat = logits.view(-1, logits.shape[-1])
        rows = wanted.flatten().nonzero()[:, 0].to(logits.device)
        step = max(1, _LOGIT_CELLS // flat.shape[1])
        mixed = 0
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            picked = flat[rows[part]]
            mixed += mix_rows(picked, found[part], self._mixture)
            flat[rows[part]] = picked
        counters = self.knnlm.counters
        with counters.lock:
            counters.steps += 1
            counters.searched += len(queries)
            counters.mixed += mixed


class _Scored:
    """Which positions of which inputs are scored.

    HFLM sorts, groups and pads requests before it runs the model, and tells the pass nothing but
    the tokens: so a row is known by these. An input that is another's with token 0, which is also
    the padding, at its end cannot be told apart from it, and the positions of both are searched.
    """

    def __init__(self, requests: Iterable[Request], max_length: int) -> None:
        self._ends: dict[tuple[int, ...], dict[int, int]] = {}
        for _, context, continuation in requests:
            tokens = (context + continuation)[-(max_length + 1) :][:-1]  # as HFLM cuts them
            ends = self._ends.setdefault(_without_padding(tokens), {})
            ends[len(tokens)] = max(ends.get(len(tokens), 0), len(continuation))

    def positions(self, inps: Tensor) -> Tensor:
        """Positions of padded inputs, `[b, t]`, whose next token is scored, bool `[b, t]`."""
        wanted = torch.zeros(inps.shape, dtype=torch.bool)
        for row, tokens in enumerate(inps.tolist()):
            for end, count in self._ends.get(_without_padding(tokens), {}).items():
                if end <= len(tokens):
                    wanted[row, end - count : end] = True
        if not wanted.any(dim=1).all():
            raise ModelError(
                "The harness runs the model on other tokens than the requests'.",
                hint="knnlm-store is tested with the lm_eval of constraints-dev.txt.",
            )
        return wanted


def _without_padding(tokens: list[int]) -> tuple[int, ...]:
    end = len(tokens)
    while end and tokens[end - 1] == 0:
        end -= 1
    return tuple(tokens[:end])
