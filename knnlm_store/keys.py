"""(torch) Where a language model's keys are read, and the hook that reads them.

The default, `last_ffn_input`, is the input of the last block's feed-forward module, after its
norm (Khandelwal et al. 2020, table 5: 16.06 against 17.01 for the layer's output).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from knnlm_store.errors import ModelError, UsageError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_log = logging.getLogger(__name__)

POINTS = ("last_ffn_input", "lm_head_input")

# Names that Hugging Face's blocks give their feed-forward module, the most telling first. A
# parallel or mixture-of-experts block still has one child that receives the normed input.
_FFN = re.compile(
    r"mlp|feed_?forward|ffn?|mlp_block|block_sparse_moe|moe|intermediate|fc1", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class KeyPoint:
    """A place in a model: the input or output of the module at `path`."""

    name: str
    path: str
    side: str = "input"

    def __str__(self) -> str:
        """Name it as the fingerprint does."""
        return self.name if self.name in POINTS else f"{self.path}:{self.side}"


def find_key_point(model: nn.Module, choice: str = "last_ffn_input") -> KeyPoint:
    """Find the module for `last_ffn_input`, `lm_head_input` or an explicit `path:input|output`.

    `last_ffn_input` falls back to `lm_head_input`, with a warning in the log, where the last
    block has no feed-forward module (Mamba, for example). Raises UsageError for an unknown
    choice, ModelError for a model without output embedding.
    """
    if choice == "last_ffn_input":
        path = _last_ffn(model)
        if path is not None:
            return KeyPoint(choice, path)
        _log.warning(
            "%s has no feed-forward module in its last block: keys are read at lm_head_input.",
            type(model).__name__,
        )
        choice = "lm_head_input"
    if choice == "lm_head_input":
        return KeyPoint(choice, _lm_head(model))
    return _explicit(model, choice)


def _last_ffn(model: nn.Module) -> str | None:
    """Path of the feed-forward child of the last element of the model's list of blocks."""
    names = {module: path for path, module in model.named_modules()}
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    root = decoder if isinstance(decoder, nn.Module) and decoder in names else model
    blocks = [
        module
        for module in root.modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(len(list(block.children())) > 1 for block in module)
    ]
    if not blocks:
        return None
    last = max(blocks, key=len)[-1]
    children = [(name, child) for name, child in last.named_children() if _FFN.fullmatch(name)]
    if not children:
        return None
    order = _FFN.pattern.split("|")
    _, child = min(
        children, key=lambda c: next(i for i, p in enumerate(order) if re.fullmatch(p, c[0], re.I))
    )
    return str(names[child])


def _lm_head(model: nn.Module) -> str:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    for path, module in model.named_modules():
        if module is head:
            return str(path)
    raise ModelError(
        f"{type(model).__name__} has no output embedding, so it is not a causal language model.",
        hint="Choose a place with --key-module PATH:input.",
    )


def _explicit(model: nn.Module, choice: str) -> KeyPoint:
    path, _, side = choice.rpartition(":")
    if side not in ("input", "output"):
        raise UsageError(
            f"{choice!r} is no place to read keys.",
            hint=f"Use {', '.join(POINTS)} or PATH:input or PATH:output.",
        )
    if path not in dict(model.named_modules()):
        raise UsageError(
            f"{type(model).__name__} has no module {path!r}.",
            hint="List them with: [n for n, _ in model.named_modules()]",
        )
    return KeyPoint("module", path, side)


def run_eagerly(hook: Hook) -> Hook:
    """Keep a hook out of compiled graphs: what it does is Python's, not the graph's."""
    disabled: Hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


class _StopForwardError(Exception):
    """Ends a forward pass once the key is there: the rest of it would be thrown away."""


class _PerThread(threading.local):
    """A forward pass and its hooks run in one thread; what they leave is that thread's."""

    captured: Tensor | None = None
    private: bool = False
    stop: bool = False


class KeyTap:
    """A hook at a key point. Each forward pass fills it once; `take` empties it.

    Consume-once makes silence loud: hooks that a compiled model ignores leave it empty.
    `following` keeps the keys of every forward pass, for whoever mixes behind it; `private` is a
    pass of our own that nobody else may mix.
    """

    def __init__(self, model: nn.Module, point: KeyPoint) -> None:
        self.point = point
        self.following = False
        self._thread = _PerThread()
        self._module = model.get_submodule(point.path)
        self._handle: RemovableHandle | None = None
        self.attach()

    def attach(self) -> None:
        """Put the hook on, unless it is."""
        if self._handle is not None:
            return
        if self.point.side == "input":
            self._handle = self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._handle = self._module.register_forward_hook(self._after)

    @run_eagerly
    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)))

    @run_eagerly
    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        # some blocks (Falcon) go on to add to their module's output in place
        self._keep((output if isinstance(output, Tensor) else output[0]).clone())

    def _keep(self, hidden: Tensor) -> None:
        if not (self.following or self._thread.private):
            return
        self._thread.captured = hidden.detach()
        if self._thread.stop:
            raise _StopForwardError

    @property
    def is_private(self) -> bool:
        """Whether this thread is inside `private`."""
        return self._thread.private

    @contextmanager
    def private(self) -> Iterator[None]:
        """Capture the forward passes of this block, and keep them out of any mixture."""
        self._thread.private = True
        try:
            yield
        finally:
            self._thread.private = False

    def take(self, rows: int) -> Tensor:
        """Give and clear what the last forward pass of `rows` sequences left: `[rows, t, d]`.

        Raises ModelError if nothing was captured.
        """
        hidden, self._thread.captured = self._thread.captured, None
        if hidden is None:
            raise ModelError(
                f"No key was captured at {self.point.path}.",
                hint="Attach the datastore before the model is compiled or first run compiled.",
            )
        # OPT and others flatten [b, t, d] to [b * t, d] before their feed-forward module
        return hidden if hidden.dim() == 3 else hidden.reshape(rows, -1, hidden.shape[-1])

    @torch.inference_mode()
    def read(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Run the model as far as the key point only: int64 `[b, t]` to keys `[b, t, d]`."""
        with self.private():
            self._thread.stop = True
            try:
                model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            except _StopForwardError:
                pass
            finally:
                self._thread.stop = False
        return self.take(len(input_ids))

    def remove(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
