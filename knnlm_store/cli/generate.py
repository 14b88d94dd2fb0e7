"""`knnlm-store generate`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, opening, options, output, settling
from knnlm_store.errors import ModelError, UsageError

if TYPE_CHECKING:
    from knnlm_store.generation import Counters, KnnLM
    from knnlm_store.models import LanguageModel

GENERATION = "Generation"
EXAMPLES = options.examples(
    'knnlm-store generate --store faiss:stores/law --model MODEL "The creditor shall"',
    'knnlm-store generate --store faiss:stores/law --model MODEL --chat "What is a creditor?"',
    "knnlm-store generate --store faiss:stores/law --model MODEL --json < prompts.txt",
)


def generate(
    model: options.Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts; without any, one a line from standard input.", show_default=False
        ),
    ] = None,
    store: options.Stores = None,
    backend: options.Backend = None,
    name: options.Name = None,
    url: options.Url = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    k: options.K = None,
    temperature: options.Temperature = None,
    lmbda: options.Lmbda = None,
    policy: options.Policy = None,
    blend: options.Blend = None,
    blend_from: options.BlendFrom = None,
    max_new_tokens: Annotated[
        int, options.option(GENERATION, "At most so many new tokens.", min=1)
    ] = 64,
    chat: Annotated[
        bool,
        options.option(GENERATION, "Apply the model's chat template to each prompt.", "--chat"),
    ] = False,
    sample: Annotated[
        bool,
        options.option(GENERATION, "Draw tokens at random; else the likeliest wins.", "--sample"),
    ] = False,
    seed: Annotated[
        int | None, options.option(GENERATION, "With --sample: the same seed draws the same.")
    ] = None,
    sampling_temperature: Annotated[
        float | None,
        options.option(
            GENERATION,
            "With --sample: below 1 bolder, above 1 more even; applied after mixing.",
            show_default="1.0",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        options.option(
            GENERATION,
            "With --sample: draw from the likeliest tokens that together reach this probability.",
            show_default="1.0",
        ),
    ] = None,
    num_beams: Annotated[
        int, options.option(GENERATION, "Continuations searched side by side (beams).", min=1)
    ] = 1,
    repetition_penalty: Annotated[
        float, options.option(GENERATION, "Above 1: tokens that stood before become less likely.")
    ] = 1.0,
    search_timeout: Annotated[
        float,
        options.option(
            GENERATION,
            "Seconds that a step waits for a datastore on a server; the plain model makes "
            "the tokens that it fails or is late for.",
        ),
    ] = 2.0,
    no_fallback: Annotated[
        bool,
        options.option(
            GENERATION, "End with an error where the datastore fails or is late.", "--no-fallback"
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Continue prompts with the datastore mixed in at every step.

    The text is written as it is made, prompt first.
    """
    common.need_model_libraries()
    asked = _Asked(
        max_new_tokens, chat, sample, seed, sampling_temperature, top_p, num_beams,
        repetition_penalty, search_timeout,
    )  # fmt: skip
    where = common.locations(store, backend, name, url)
    blending = opening.read_blending(len(where), blend, blend_from)
    policies = settling.one_policy(policy)
    texts = prompts or _prompts_from_stdin()
    said: dict[str, Any] = {"k": k, "temperature": temperature, "lmbda": lmbda}
    with opening.opened(where, policies=policies, blending=blending, **said) as opened:
        language_model = opened.load(model, revision=revision, device=device, dtype=dtype)
        opened.announce()
        from knnlm_store.generation import KnnLM

        ids = [_prompt_ids(language_model, text, asked) for text in texts]
        opened.fit(language_model, common.batch_tokens(language_model, None))
        lm = KnnLM(language_model).use(
            opened.source, opened.mixture, timeout=search_timeout, fallback=not no_fallback
        )
        # first: who generates through an outage can count no entries after it
        report = opened.report() if json else {}
        _seed(seed)
        results: list[dict[str, Any]] = []
        try:
            for text, tokens in zip(texts, ids, strict=True):
                if results and not json:
                    typer.echo()
                results.append(_continue(lm, text, tokens, asked, quiet=json))
        finally:
            _tell_fallbacks(lm.counters)
    if json:
        output.print_json({"generations": results, **report, **_counted(lm.counters)})


_POSITIVE = {
    "sampling_temperature": "1 has no effect.",
    "repetition_penalty": "1 has no effect.",
    "search_timeout": "2 seconds is the default.",
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """How the user wants text made. Raises UsageError for what cannot be right."""

    max_new_tokens: int
    chat: bool
    sample: bool
    seed: int | None
    sampling_temperature: float | None
    top_p: float | None
    num_beams: int
    repetition_penalty: float
    search_timeout: float

    def __post_init__(self) -> None:
        for name in ("seed", "sampling_temperature", "top_p"):
            if getattr(self, name) is not None and not self.sample:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} needs --sample.", hint=f"Add --sample to {option}.")
        for name, hint in _POSITIVE.items():
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} must be above 0, not {value}.", hint=hint)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(
                f"--top-p must lie above 0 and up to 1, not {self.top_p}.", hint="Try --top-p 0.9."
            )

    @property
    def streams(self) -> bool:
        """Whether text can be shown as it is made: beams are chosen between at the end."""
        return self.num_beams == 1

    def options(self) -> dict[str, Any]:
        """Give the arguments of transformers' generate()."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.sample,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
        }
        if not self.sample:
            return chosen | {"temperature": None, "top_p": None, "top_k": None}
        # the checkpoint's own sampling settings would narrow this silently
        return chosen | {
            "temperature": 1.0 if self.sampling_temperature is None else self.sampling_temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": 0,
        }


def _prompts_from_stdin() -> list[str]:
    hint = 'Name one, as in: knnlm-store generate --store STORE "The law", or pipe them in.'
    if sys.stdin.isatty():
        raise UsageError("There is no prompt.", hint=hint)
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input is not UTF-8: byte {error.start} cannot be read.",
            hint="Convert it first, for example with iconv.",
        ) from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError("There is no prompt.", hint=hint)
    return prompts


def _seed(seed: int | None) -> None:
    import torch

    if seed is not None:
        torch.manual_seed(seed)


def _continue(
    lm: KnnLM, prompt: str, tokens: list[int], asked: _Asked, quiet: bool
) -> dict[str, Any]:
    """Generate from one prompt; streamed to stdout unless quiet or searched by beams."""
    import torch
    from transformers import TextStreamer

    model, tokenizer = lm.language_model.model, lm.language_model.tokenizer
    ids = torch.tensor([tokens], device=model.device)
    streams = asked.streams and not quiet
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if not quiet:
        typer.echo(prompt, nl=asked.chat)
    started = time.monotonic()
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        streamer=streamer if streams else None,
        pad_token_id=_padding(model, tokenizer),
        **asked.options(),
    )[0, ids.shape[1] :]
    seconds = time.monotonic() - started
    text = tokenizer.decode(made, skip_special_tokens=True)
    if not quiet and not streams:
        typer.echo(text)
    return {"prompt": prompt, "text": text, "tokens": len(made), "seconds": seconds}


def _tell_fallbacks(counted: Counters) -> None:
    """Say on stderr how many steps went without the datastore, if any did."""
    if counted.fallbacks:
        output.say(
            f"{output.count(counted.fallbacks)} of {output.count(counted.steps)} steps fell back "
            f"to the plain model: {counted.last_error}"
        )


def _counted(counted: Counters) -> dict[str, Any]:
    """Give the counters as JSON-able objects."""
    return {
        "counters": {name: getattr(counted, name) for name in ("steps", "searched", "mixed")},
        "fallback": {
            "steps": counted.fallbacks,
            "failures": counted.failures,
            "opened": counted.opened,
            "last_error": counted.last_error,
        },
    }


def _padding(model: Any, tokenizer: Any) -> int | None:
    """Padding token; any will do for a batch of one, but generate() asks for it aloud."""
    choices = (model.generation_config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in choices if token is not None), 0)


def _prompt_ids(model: LanguageModel, prompt: str, asked: _Asked) -> list[int]:
    """Tokens of a prompt: by the chat template, or as the beginning of a document."""
    ids = [model.document_start, *model.encode(prompt).tolist()]
    if asked.chat:
        if not getattr(model.tokenizer, "chat_template", None):
            raise ModelError(f"{model.name} has no chat template.", hint="Leave --chat out.")
        encoded = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )
        ids = list(encoded["input_ids"])
    if model.limit is not None and len(ids) + asked.max_new_tokens > model.limit:
        raise UsageError(
            f"A prompt of {len(ids)} tokens and {asked.max_new_tokens} new ones exceed the "
            f"{model.limit} that {model.name} can read.",
            hint="Shorten the prompt, or lower --max-new-tokens.",
        )
    return ids
