"""What the commands share: options, consoles, model loading, how errors are told."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from knnlm_store import registry
from knnlm_store.corpus import Corpus, Problem, ReadOptions
from knnlm_store.datastore import Datastore
from knnlm_store.errors import KnnlmError, UsageError
from knnlm_store.values import Location

if TYPE_CHECKING:
    from knnlm_store.interpolation import Mixture
    from knnlm_store.models import LanguageModel

err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Store = Annotated[
    str | None,
    typer.Option("--store", help="The datastore, as BACKEND:PATH/NAME.", show_default=False),
]
Backend = Annotated[
    str | None, typer.Option(help="Short form: the backend, with --name.", show_default=False)
]
Name = Annotated[
    str | None, typer.Option(help="Short form: the datastore's name.", show_default=False)
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="KNNLM_STORE_URL",
        help="Short form: where the backend is; its default place otherwise.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        envvar="KNNLM_STORE_MODEL", help="Hub id, local folder or GGUF file.", show_default=False
    ),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Windows in one forward pass; 1 on a CPU, 8 on a GPU.", min=1, show_default=False
    ),
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, files (.txt .md .jsonl .jsonl.gz .parquet), patterns, - for stdin, "
        "hf:NAME:SPLIT.",
        show_default=False,
    ),
]
TextColumn_ = Annotated[str, typer.Option("--text-column", help="Column that holds the text.")]
IdColumn = Annotated[str, typer.Option(help="Column that names the document.")]
Include = Annotated[
    list[str] | None, typer.Option(help="Patterns of files in folders.", show_default=False)
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Patterns of files left out.", show_default=False)
]
Encoding = Annotated[str, typer.Option(help="Encoding of text files.")]
StdinFormat = Annotated[str, typer.Option(help="What - is: text or jsonl.")]
Limit = Annotated[int | None, typer.Option(help="Stop after so many documents.", min=1)]
K = Annotated[int | None, typer.Option("--k", help="Neighbours a token.", show_default="1024")]
Temperature = Annotated[
    float | None,
    typer.Option(help="Temperature of p_kNN.", show_default="taken from the datastore"),
]
Lmbda = Annotated[float | None, typer.Option(help="Weight of p_kNN.", show_default="0.25")]


def read_options(stdin_format: str, **values: Any) -> ReadOptions:
    """Build the reading options from what typer gives: None where nothing was said."""
    if stdin_format not in ("text", "jsonl"):
        raise UsageError(f"--stdin-format is text or jsonl, not {stdin_format!r}.")
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    return ReadOptions(stdin_format=stdin_format, **said)  # type: ignore[arg-type]


def location(
    store: str | None,
    backend: str | None,
    name: str | None,
    url: str | None,
    corpus: Corpus | None = None,
) -> Location:
    """Settle which datastore is meant, by URI or short form; the name may come from the corpus."""
    if store is not None:
        if backend is not None or name is not None:
            raise UsageError(
                "--store names the whole place; --backend and --name go without it.",
                hint="Use --store BACKEND:PATH/NAME alone.",
            )
        return registry.parse(store)
    if backend is None:
        raise UsageError(
            "No datastore is named.", hint="Use --store faiss:stores/NAME or --backend faiss."
        )
    if name is None and corpus is not None and len(corpus.sources) == 1:
        (source,) = corpus.sources
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")
    if not name:
        raise UsageError("The datastore needs a name.", hint="Add --name NAME.")
    return registry.short_form(backend, name, url)


def load_model(name: str, **options: Any) -> LanguageModel:
    """Load a model, its libraries first."""
    registry.require("torch", "transformers")
    registry.require("transformers", "transformers")
    from transformers.utils import logging as transformers_logging

    from knnlm_store import models

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with err.status(f"loading {name}"):
        return models.load(name, **options)


@dataclass(frozen=True, slots=True)
class Opened:
    """A datastore with the mixture to use, and whether the temperature came from its data."""

    store: Datastore
    mixture: Mixture
    temperature_from_data: bool

    def settings(self) -> dict[str, Any]:
        """Give the mixture's settings as a JSON-able object."""
        policy = self.mixture.policy
        return {
            "k": self.mixture.k,
            "temperature": self.mixture.temperature,
            "temperature_from": "datastore" if self.temperature_from_data else "user",
            "lmbda": getattr(policy, "lmbda", None),
            "policy": policy.name,
        }


def open_store(
    where: Location, *, k: int | None, temperature: float | None, lmbda: float | None
) -> Opened:
    """Open a datastore and settle how its neighbours are mixed in; says what it chose."""
    from knnlm_store.calibration import default_mixture

    store = Datastore.open(where)
    mixture = default_mixture(store, k=k, temperature=temperature, lmbda=lmbda)
    opened = Opened(store, mixture, temperature is None)
    if temperature is None:
        err.print(f"temperature {mixture.temperature:g}, taken from the datastore; not calibrated")
    return opened


def load_model_for(store: Datastore, name: str, **options: Any) -> LanguageModel:
    """Load the model that a datastore is to be used with; refuse another."""
    manifest = store.manifest
    model = load_model(name, key=manifest.key, window=manifest.window, **options)
    store.require(model.manifest())
    return model


def batch_tokens(model: LanguageModel, batch_size: int | None) -> int:
    """Inputs of one forward pass."""
    return model.window * (batch_size or (1 if model.model.device.type == "cpu" else 8))


def progress_bar() -> Progress:
    """Make the progress display of long work, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def tell_problems(problems: Sequence[Problem]) -> None:
    """Name every problem on stderr, one line each."""
    for problem in problems:
        kind = "failed" if problem.failed else "skipped"
        err.print(f"{kind}: {problem.where}: {problem.what}", markup=False)


def tell_error(error: KnnlmError) -> None:
    """Say what went wrong, and what to try."""
    err.print(f"error: {error}", markup=False)
    if error.hint:
        err.print(error.hint, markup=False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; infinities become null, which JSON can hold."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False, indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


def set_up_logging() -> None:
    """Send warnings of this package to stderr."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    logging.getLogger("knnlm_store").setLevel(logging.WARNING)
    logging.getLogger("knnlm_store_faiss").setLevel(logging.WARNING)


def count(n: float) -> str:
    """Write a count with thousands separators."""
    return f"{n:,.0f}"


def size(n: float | None) -> str:
    """Write a number of bytes for people."""
    if n is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} TiB"
