"""Options that several commands share, in the groups that `--help` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

STORE, MODEL, READING, MIXING = "Datastore", "Model", "Reading documents", "Mixing"


def option(panel: str, help: str, *names: str, **settings: Any) -> Any:  # noqa: A002  typer's word
    """Make an option of a group; without a default to show unless one is given in words."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def examples(*lines: str) -> str:
    """Lay out example commands below a command's help."""
    return "\n\n".join(("Examples:", *(f"  {line}" for line in lines)))


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, files (.txt .md .jsonl .jsonl.gz .parquet), quoted patterns, "
        "- for standard input (one document named stdin), or hf:NAME:SPLIT for a dataset of the "
        "Hugging Face hub.",
        show_default=False,
    ),
]

Store = Annotated[
    str | None,
    option(
        STORE,
        "The datastore, as BACKEND:PATH/NAME, such as faiss:stores/law, or a domain's name.",
        "--store",
    ),
]
Stores = Annotated[
    list[str] | None,
    option(
        STORE,
        "The datastore, as BACKEND:PATH/NAME, such as faiss:stores/law; may be repeated: the "
        "nearest entries of all count alike, unless they are blended. Or a domain's name.",
        "--store",
        show_default=False,
    ),
]
DomainName = Annotated[
    str | None,
    option(STORE, "Instead of --store: a name that knnlm-store domains shows.", "--domain"),
]
Config = Annotated[
    Path | None,
    option(
        STORE,
        "The file that names domains.",
        envvar="KNNLM_STORE_CONFIG",
        show_default="knnlm.toml here or above",
    ),
]
Backend = Annotated[
    str | None, option(STORE, "Instead of --store: the backend alone, such as faiss.")
]
Name = Annotated[str | None, option(STORE, "With --backend: the datastore's name.")]
SourceName = Annotated[
    str | None,
    option(STORE, "With --backend: the datastore's name.", show_default="the folder's name"),
]
Url = Annotated[
    str | None,
    option(
        STORE,
        "With --backend: the folder or server that holds the datastores.",
        envvar="KNNLM_STORE_URL",
        show_default="the folder stores for faiss, localhost:6333 for qdrant, localhost:19530 for "
        "milvus",
    ),
]
CreationOptions = Annotated[
    list[str] | None,
    option(
        STORE,
        "KEY=VALUE, a setting of the backend for a new datastore; may be repeated.",
        show_default=False,
    ),
]

Model = Annotated[
    str,
    option(
        MODEL,
        "The language model: a Hugging Face hub id, a local folder, or a GGUF file.",
        envvar="KNNLM_STORE_MODEL",
        show_default=False,
    ),
]
Revision = Annotated[str | None, option(MODEL, "Branch, tag or commit of a hub model.")]
Device = Annotated[str, option(MODEL, "auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, option(MODEL, "Precision: auto, float32, bfloat16 or float16.")]
BatchSize = Annotated[
    int | None,
    option(
        MODEL, "Windows of text in one forward pass.", min=1, show_default="1 on a CPU, 8 on a GPU"
    ),
]

Source = Annotated[
    str | None,
    option(READING, "Name that groups these documents.", show_default="the folder's name"),
]
MetadataColumns = Annotated[
    list[str] | None, option(READING, "Column kept with each document; may be repeated.")
]
Metadata = Annotated[
    list[str] | None, option(READING, "KEY=VALUE kept with every document; may be repeated.")
]
TextColumn = Annotated[str, option(READING, "Column that holds the text.", "--text-column")]
IdColumn = Annotated[str, option(READING, "Column that names the document.")]
Include = Annotated[
    list[str] | None,
    option(
        READING,
        "Pattern of the files to read in folders; may be repeated.",
        show_default="all kinds named above",
    ),
]
Exclude = Annotated[
    list[str] | None, option(READING, "Pattern of files and folders left out; may be repeated.")
]
Encoding = Annotated[str, option(READING, "Encoding of text files.")]
StdinFormat = Annotated[str, option(READING, "What standard input is: text or jsonl.")]
Limit = Annotated[int | None, option(READING, "Stop after so many documents.", min=1)]

K = Annotated[
    int | None,
    option(
        MIXING,
        "How many nearest entries are looked up for a token.",
        "--k",
        show_default="as tuned, else 1024",
    ),
]
Temperature = Annotated[
    float | None,
    option(
        MIXING,
        "How evenly near and far entries count: above 0, higher is more even.",
        show_default="as tuned, else taken from the datastore",
    ),
]
Lmbda = Annotated[
    float | None,
    option(
        MIXING,
        "Weight of the datastore, from 0, the plain model, to 1.",
        "--lmbda",
        "--lambda",
        show_default="decided by --policy",
    ),
]
Policy = Annotated[
    str | None,
    option(
        MIXING,
        "How the datastore's weight is decided: fixed, ratio, or, once tuned, bucketed or learned.",
        show_default="as tuned, else ratio",
    ),
]
Policies = Annotated[
    list[str] | None,
    option(
        MIXING,
        "How the datastore's weight is decided: fixed, ratio, or, once tuned, bucketed or learned; "
        "repeated, or all: they are compared in one pass.",
        "--policy",
        show_default="as tuned, else ratio",
    ),
]
Blend = Annotated[
    str | None,
    option(
        MIXING,
        "Weight of each --store, in order, such as 0.6,0.3, instead of one pool; the rest of 1 is "
        "the plain model's.",
    ),
]
BlendFrom = Annotated[
    list[str] | None,
    option(
        MIXING,
        "Folder or file of text, neither ingested nor scored, to which the weights of a blend are "
        "fitted; may be repeated.",
        show_default=False,
    ),
]
TuneFrom = Annotated[
    list[str] | None,
    option(
        MIXING,
        "Folder or file of text, neither ingested nor scored, to which one mixture of all --store "
        "is fitted, as tune does for one; may be repeated.",
        show_default=False,
    ),
]
