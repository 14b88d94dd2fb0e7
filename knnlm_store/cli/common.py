"""What commands do before their own work: find the datastore, load the model.

Cheap checks come first: a wrong argument is told before torch is imported.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnlm_store.cli.output import status
from knnlm_store.errors import MissingDependency, StoreMismatch, UsageError

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
    from knnlm_store.datastore import Datastore
    from knnlm_store.models import LanguageModel
    from knnlm_store.values import Location

_STDIN_FORMATS = ("text", "jsonl")


def need_model_libraries() -> None:
    """Raise MissingDependency unless a model can be run; nothing is imported."""
    for library in ("torch", "transformers"):
        if find_spec(library) is None:
            raise MissingDependency.of(library, "transformers")


def read_options(stdin_format: str, **values: Any) -> ReadOptions:
    """Build the reading options from what typer gives: None where nothing was said."""
    from knnlm_store.corpus import ReadOptions

    if stdin_format not in _STDIN_FORMATS:
        raise UsageError(
            f"{stdin_format!r} is no format of standard input.",
            hint=f"Use --stdin-format {' or '.join(_STDIN_FORMATS)}.",
        )
    said = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in values.items()
        if v is not None and v != []
    }
    return ReadOptions(stdin_format=stdin_format, **said)  # type: ignore[arg-type]


def pairs(name: str, texts: list[str] | None, example: str) -> dict[str, str]:
    """Read the values of an option that takes KEY=VALUE and may be repeated."""
    read = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{name} takes KEY=VALUE, not {text!r}.", hint=f"For example: {example}"
            )
        read[key] = value
    return read


def creation_options(texts: list[str] | None) -> dict[str, str]:
    """Read the backend's settings for a new datastore."""
    return pairs("--option", texts, "--option shard_number=2")


def store_uri(text: str, config: Path | None = None) -> str:
    """Give the URI of a datastore that is named by its URI or by a domain.

    Raises UsageError for what is neither, and for a domain of several datastores.
    """
    from knnlm_store.domains import is_name

    return _domain_uri(text, config) if is_name(text) else text


def store_argument(text: str | None) -> str | None:
    """Do as `store_uri` does, for an argument or an option that names a datastore."""
    return None if text is None else store_uri(text)


def _domain_uri(domain: str, config: Path | None) -> str:
    from knnlm_store.domains import Domains

    where = list(map(str, Domains.read(config).named(domain).stores))
    if len(where) > 1:
        raise UsageError(
            f"The domain {domain} stands for {len(where)} datastores, and this takes one.",
            hint=f"Name one of them: {', '.join(where)}",
        )
    return where[0]


def require_alone(domain: str, *others: object) -> None:
    """Raise UsageError where a datastore, or a part of its place, is named besides --domain."""
    if any(others):
        raise UsageError(
            "--domain names the datastore; --store, --backend, --name and --url go without it.",
            hint=f"Use --domain {domain} alone.",
        )


def location(
    store: str | None,
    backend: str | None,
    name: str | None,
    url: str | None,
    corpus: Corpus | None = None,
    *,
    domain: str | None = None,
    config: Path | None = None,
) -> Location:
    """Settle which datastore is meant, by URI, domain or short form.

    corpus: where the name of a short form may come from. config: the file that names domains.
    """
    from knnlm_store import registry

    url_said = url is not None and url != os.environ.get("KNNLM_STORE_URL")
    if domain is not None:
        require_alone(domain, store, backend, name, url if url_said else None)
        return registry.parse(_domain_uri(domain, config))
    if store is not None:
        if backend is not None or name is not None or url_said:
            raise UsageError(
                "--store names the whole place; --backend, --name and --url go without it.",
                hint="Use --store BACKEND:PATH/NAME alone.",
            )
        return _lasting(registry.parse(store_uri(store, config)))
    if backend is None:
        raise UsageError(
            "No datastore is named.",
            hint="Use --store faiss:stores/NAME, or --backend faiss --name NAME.",
        )
    if name is None and corpus is not None and len(corpus.sources) == 1:
        (source,) = corpus.sources
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")
    if not name:
        raise UsageError("The datastore needs a name.", hint="Add --name NAME.")
    return _lasting(registry.short_form(backend, name, url))


def locations(
    stores: list[str] | None, backend: str | None, name: str | None, url: str | None
) -> list[Location]:
    """Settle which datastores are meant: several by URI, or one by URI or short form."""
    named: list[str | None] = [*stores] if stores else [None]
    found = [location(store, backend, name, url) for store in named]
    places = [
        where if where.network else replace(where, root=os.path.realpath(where.root))
        for where in found
    ]
    for i, where in enumerate(found):
        if places[i] in places[:i]:
            raise UsageError(
                f"{where} is named twice.",
                hint="Name each datastore once; its entries would count twice.",
            )
    return found


def _lasting(where: Location) -> Location:
    if where.scheme == "memory":
        raise UsageError(
            "A datastore in memory would end with the command.",
            hint="Use --store faiss:stores/NAME.",
        )
    return where


def load_model(name: str, **options: Any) -> LanguageModel:
    """Load a model, its libraries first."""
    with status(f"loading {name}"):
        from transformers.utils import logging as transformers_logging

        from knnlm_store import models

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        # it tells of every retry; what is wrong in the end is told by us
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
        return models.load(name, **options)


def load_model_for(store: Datastore, name: str, **options: Any) -> LanguageModel:
    """Load the model that a datastore is to be used with; refuse another."""
    manifest = store.manifest
    options = {"key": manifest.key, "window": manifest.window} | options
    try:
        model = load_model(name, **options)
    except UsageError as error:
        if options["key"] != manifest.key:  # the user's own, not the datastore's
            raise
        raise StoreMismatch(
            f"{store.location} was written by another model ({manifest.model}). {error}",
            field="model",
            hint="Use that model, or ingest under another --name.",
        ) from error
    store.require(model.manifest())
    return model


def batch_tokens(model: LanguageModel, batch_size: int | None) -> int:
    """Inputs of one forward pass."""
    return model.window * (batch_size or (1 if model.model.device.type == "cpu" else 8))


def noting(
    corpus: Iterable[Document | Problem], problems: list[Problem]
) -> Iterator[Document | Problem]:
    """Pass a corpus through, and keep its problems also for a run that ends in an error."""
    from knnlm_store.corpus import Problem

    for item in corpus:
        if isinstance(item, Problem):
            problems.append(item)
        yield item
