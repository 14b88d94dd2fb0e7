"""`knnlm-store generate`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common
from knnlm_store.errors import ModelError, UsageError

if TYPE_CHECKING:
    from knnlm_store.generation import KnnLM
    from knnlm_store.models import LanguageModel


def generate(
    model: common.Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts; one a line on stdin if there are none.", show_default=False),
    ] = None,
    store: common.Store = None,
    backend: common.Backend = None,
    name: common.Name = None,
    url: common.Url = None,
    k: common.K = None,
    temperature: common.Temperature = None,
    lmbda: common.Lmbda = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Apply the model's chat template to each prompt.")
    ] = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample; greedy decoding otherwise.")
    ] = False,
    sampling_temperature: Annotated[
        float, typer.Option(help="Temperature of sampling, after the mixture.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.", show_default=False)] = None,
    num_beams: Annotated[int, typer.Option(help="Beams; 1 streams.", min=1)] = 1,
    repetition_penalty: Annotated[float, typer.Option(help="As in transformers.")] = 1.0,
    revision: common.Revision = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = False,
) -> None:
    """Continue prompts with the datastore mixed in at every step."""
    texts = prompts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise UsageError("There is no prompt.", hint='Add one: knnlm-store generate ... "The law"')
    where = common.location(store, backend, name, url)
    opened = common.open_store(where, k=k, temperature=temperature, lmbda=lmbda)
    with opened.store:
        language_model = common.load_model_for(
            opened.store, model, revision=revision, device=device, dtype=dtype
        )
        from knnlm_store.generation import KnnLM

        lm = KnnLM(language_model).use(opened.store, opened.mixture)
        options = _options(
            max_new_tokens, sample, sampling_temperature, top_p, num_beams, repetition_penalty
        )
        if seed is not None:
            _seed(seed)
        results = [_continue(lm, text, chat, options, quiet=json) for text in texts]
        if json:
            common.print_json(
                {
                    "generations": results,
                    "store": {"uri": str(where), "entries": opened.store.backend.count()},
                    "settings": opened.settings(),
                    "counters": asdict(lm.counters),
                }
            )


def _options(
    max_new_tokens: int,
    sample: bool,
    sampling_temperature: float,
    top_p: float,
    num_beams: int,
    repetition_penalty: float,
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sample,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
    }
    if sample:
        if sampling_temperature <= 0:
            raise UsageError(f"--sampling-temperature must be above 0, not {sampling_temperature}.")
        # the checkpoint's own sampling settings would narrow this silently
        options |= {"temperature": sampling_temperature, "top_p": top_p, "top_k": 0}
    else:
        options |= {"temperature": None, "top_p": None, "top_k": None}
    return options


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _continue(
    lm: KnnLM, prompt: str, chat: bool, options: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """Generate from one prompt; streamed to stdout unless quiet or searched by beams."""
    import torch
    from transformers import TextStreamer

    model, tokenizer = lm.language_model.model, lm.language_model.tokenizer
    ids = torch.tensor([_prompt_ids(lm.language_model, prompt, chat)], device=model.device)
    streams = not quiet and options["num_beams"] == 1
    if not quiet:
        typer.echo(prompt, nl=chat)
    started = time.monotonic()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        if streams
        else None,
        pad_token_id=_padding(model, tokenizer),
        **options,
    )[0, ids.shape[1] :]
    seconds = time.monotonic() - started
    text = tokenizer.decode(output, skip_special_tokens=True)
    if not quiet and not streams:
        typer.echo(text)
    return {"prompt": prompt, "text": text, "tokens": len(output), "seconds": seconds}


def _padding(model: Any, tokenizer: Any) -> int | None:
    """Padding token; any will do for a batch of one, but generate() asks for it aloud."""
    choices = (model.generation_config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in choices if token is not None), 0)


def _prompt_ids(model: LanguageModel, prompt: str, chat: bool) -> list[int]:
    """Tokens of a prompt: by the chat template, or as the beginning of a document."""
    if not chat:
        return [model.document_start, *model.encode(prompt).tolist()]
    if not getattr(model.tokenizer, "chat_template", None):
        raise ModelError(f"{model.name} has no chat template.", hint="Leave --chat out.")
    encoded = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])
