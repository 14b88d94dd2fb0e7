"""`knnlm-store generate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knnlm_store.cli import common, naming, opening, options, output, settling, traces
from knnlm_store.cli.prompts import Asked, from_stdin, ids_of
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.attribution import Explanation
    from knnlm_store.generation import Counters, KnnLM

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
    domain: options.DomainName = None,
    config: options.Config = None,
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
    tune_from: options.TuneFrom = None,
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
    explain: Annotated[
        bool,
        options.option(
            GENERATION, "Tell which documents made the text, computed anew after it.", "--explain"
        ),
    ] = False,
    html: Annotated[
        Path | None,
        options.option(GENERATION, "HTML file to write, with the text explained token by token."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Continue prompts with the datastore mixed in at every step.

    The text is written as it is made, prompt first.
    """
    from knnlm_store import pages

    common.need_model_libraries()
    if html is not None:
        pages.check_place(html, traces.PAGE)
    asked = Asked(
        max_new_tokens, chat, sample, seed, sampling_temperature, top_p, num_beams,
        repetition_penalty, search_timeout,
    )  # fmt: skip
    where, k, temperature, lmbda, policy, blend = naming.named(
        store, backend, name, url, domain=domain, config=config, k=k, temperature=temperature,
        lmbda=lmbda, policy=policy, blend=blend, fitted=blend_from or tune_from,
    )  # fmt: skip
    blending = opening.read_blending(len(where), blend, blend_from)
    tuning = opening.read_tuning(
        len(where), tune_from,
        temperature=temperature, lmbda=lmbda, policy=policy, blend=blend, blend_from=blend_from,
    )  # fmt: skip
    policies = settling.one_policy(policy)
    texts = prompts or from_stdin()
    said: dict[str, Any] = {"k": k, "temperature": temperature, "lmbda": lmbda, "tuning": tuning}
    with opening.opened(where, policies=policies, blending=blending, **said) as opened:
        language_model = opened.load(model, revision=revision, device=device, dtype=dtype)
        opened.announce()
        from knnlm_store.generation import KnnLM

        ids = [ids_of(language_model, text, asked) for text in texts]
        opened.fit(language_model, common.batch_tokens(language_model, None))
        lm = KnnLM(language_model).use(
            opened.source, opened.mixture, timeout=search_timeout, fallback=not no_fallback
        )
        # first: who generates through an outage can count no entries after it
        report = opened.report() if json else {}
        _seed(seed)
        results: list[dict[str, Any]] = []
        explained: list[tuple[str, Explanation]] = []
        try:
            for text, tokens in zip(texts, ids, strict=True):
                if results and not json:
                    typer.echo()
                result, made = _continue(lm, text, tokens, asked, quiet=json)
                results.append(result)
                if explain or html is not None:
                    explained.append((traces.title_of(text), _explained(lm, opened, tokens, made)))
                if explain:
                    _tell(explained[-1][1], result, json)
        finally:
            _tell_fallbacks(lm.counters)
    if json:
        output.print_json({"generations": results, **report, **_counted(lm.counters)})
    if html is not None:
        traces.write_page(html, explained)
    elif explain and not json:
        output.say("For every token of it: --html FILE, or --json.")


def _explained(
    lm: KnnLM, opened: opening.Opened, prompt: list[int], made: list[int]
) -> Explanation:
    from knnlm_store.explaining import explain

    model, start = lm.language_model, len(prompt)
    with output.status("explaining"):
        return explain(model, opened.source, opened.mixture, [*prompt, *made], start)


def _tell(explanation: Explanation, result: dict[str, Any], json: bool) -> None:
    if json:
        result["explanation"] = explanation.json()
    else:
        typer.echo()
        traces.show_documents(explanation)


def _seed(seed: int | None) -> None:
    import torch

    if seed is not None:
        torch.manual_seed(seed)


def _continue(
    lm: KnnLM, prompt: str, tokens: list[int], asked: Asked, quiet: bool
) -> tuple[dict[str, Any], list[int]]:
    """Generate from one prompt; streamed to stdout unless quiet or searched by beams.

    Gives what is reported, and the new tokens.
    """
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
    result = {"prompt": prompt, "text": text, "tokens": len(made), "seconds": seconds}
    return result, made.tolist()


def _tell_fallbacks(counters: Counters) -> None:
    """Say on stderr how many steps went without the datastore, if any did."""
    if counters.fallbacks:
        output.say(
            f"{output.count(counters.fallbacks)} of {counted(counters.steps, 'step')} fell back "
            f"to the plain model: {counters.last_error}"
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
