"""docs/deploying.md: its commands are ours, its variables are read, its sums are right."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from knnlm_store import registry
from knnlm_store.cli.main import app
from knnlm_store.values import Spec
from knnlm_store_milvus import naming as milvus_names
from knnlm_store_qdrant import naming as qdrant_names
from tests.deploy_support import DEPLOY, ROOT, blocks, job_and_cronjob, objects

PAGE = ROOT / "docs" / "deploying.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHELL = blocks(TEXT, "sh").replace("\\\n", " ")


# -- commands --------------------------------------------------------------------------------------


def parse(words: list[str]) -> dict[str, Any]:
    """Parse the words behind `knnlm-store` as the command line would; nothing is run."""
    commands: Any = get_command(app)
    command = commands.commands[words[0]]
    values: dict[str, Any] = command.make_context(words[0], words[1:]).params
    return values


def test_the_jobs_command_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, str] = objects()["ConfigMap", "knnlm-settings"]["data"]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for job in job_and_cronjob():
        (container,) = job["template"]["spec"]["containers"]
        assert {"configMapRef": {"name": "knnlm-settings"}} in container["envFrom"]
        found = parse(container["args"])
        assert found["model"] == settings["KNNLM_STORE_MODEL"]
        where = registry.short_form(found["backend"], found["name"], found["url"])
        assert str(where) == "qdrant://qdrant.qdrant.svc:6333/law"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert [mounts.get(place) for place in found["inputs"]] == ["corpus"]
        folder, _, _ = settings["KNNLM_QDRANT_API_KEY_FILE"].rpartition("/")
        assert mounts[folder] == "qdrant"


def test_the_pages_commands_are_ours() -> None:
    lines = [line.split("#")[0] for line in SHELL.splitlines() if line.startswith("knnlm-store")]
    assert len(lines) == 5
    for line in lines:
        parse(shlex.split(line)[1:])


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(TyperException, match="No such option: --stor"):
        parse(["ingest", "--stor", "faiss:a/b", "x"])
    with pytest.raises(KeyError, match="copi"):
        parse(["copi", "a", "b"])


def test_the_pages_files_are_there() -> None:
    named = set(re.findall(r"deploy/[\w./-]+\w", TEXT))
    assert len(named) >= 6
    for name in named:
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target


def test_services_and_volumes_of_the_page() -> None:
    for file, service in re.findall(r"--file (\S+) cp (\w+):", SHELL):
        assert re.search(rf"^  {service}:$", (ROOT / file).read_text(), flags=re.MULTILINE)
    network = re.findall(r"`([\w-]+)_default`", TEXT)
    names = [re.findall(r"^name: (\S+)$", p.read_text(), re.M) for p in DEPLOY.glob("*/*.yaml")]
    assert all([name] in names for name in network)


def test_options_and_collections_are_the_adapters() -> None:
    pairs = re.findall(r"--option ([a-z_]+)=|`([a-z_]+)=\w+`", TEXT)
    named = {one or other for one, other in pairs}
    assert named >= {"shard_number", "replication_factor", "on_disk"}
    assert named <= set(registry.load("qdrant").options)
    for module, records in ((qdrant_names, "law.records"), (milvus_names, "law__records")):
        assert module.records_of("law") == records
        assert f"`law` and `{records}`" in TEXT
    assert (qdrant_names.collection_of("law"), milvus_names.encode("law")) == ("law", "law")


# -- variables -------------------------------------------------------------------------------------


def strings(folder: Path) -> set[str]:
    """Every string constant in the code below a folder."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in nodes if isinstance(node.value, str)}


def ours(text: str) -> set[str]:
    return set(re.findall(r"\bKNNLM_[A-Z_]+\b", text))


def test_every_variable_is_read() -> None:
    """By the core or an adapter; one that was renamed there is found here."""
    read = strings(ROOT / "knnlm_store") | strings(ROOT / "adapters")
    said = ours(TEXT)
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            said |= ours(path.read_text(encoding="utf-8"))
    assert said - read == set()
    assert {"KNNLM_STORE_MODEL", "KNNLM_STORE_URL"} <= said
    for name in ("HF_TOKEN", "HF_HOME"):
        assert name in strings(Path(huggingface_hub.constants.__file__).parent)


def test_every_variable_is_told() -> None:
    """Of the core and the adapters, but for those of their own making."""
    read = {s for s in strings(ROOT / "knnlm_store") | strings(ROOT / "adapters") if ours(s) == {s}}
    assert read - ours(TEXT) - {"KNNLM_ENGINE_API_KEY"} == set()


# -- sums ------------------------------------------------------------------------------------------

ROWS = re.findall(r"^\| (\w+) (\w+) \| ([d\d+ ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
                  TEXT, flags=re.MULTILINE)  # fmt: skip


def size(formula: str, d: int) -> int:
    """Evaluate `2d + 560`."""
    factor, _, constant = formula.partition("d")
    return int(factor or 1) * d + int(constant.replace("+", "") or 0)


def test_sizes() -> None:
    every = {
        (b, s) for b in ("FAISS", "Qdrant", "Milvus") for s in registry.load(b.lower()).storages
    }
    assert {(backend, storage) for backend, storage, *_ in ROWS} == every
    for backend, storage, formula, *told in ROWS:
        for d, bytes_told in zip((576, 2048, 4096), told, strict=True):
            assert int(bytes_told.replace(",", "")) == size(formula, d)
            adapter = registry.load(backend.lower())
            assert size(formula, d) == adapter.bytes_per_entry(Spec(d, storage))


def test_the_example() -> None:
    (formula,) = (
        f for backend, storage, f, *_ in ROWS if (backend, storage) == ("Qdrant", "float16")
    )
    entry, tokens = size(formula, 2048), 10_000_000
    example = " ".join(TEXT.partition("**An example.**")[2].partition("##")[0].split())
    assert f"{tokens:,} x {entry:,} bytes are {tokens * entry / 1e9:.0f} GB" in example
    assert f"a disk of {tokens * entry * 1.5 / 1e9:.0f} GB" in example
    assert f"{tokens * (2 * 2048 + 300) / 1e9:.0f} GB of memory" in example
    assert f"or {tokens * 300 / 1e9:.0f} GB with `on_disk=true`" in example
    assert f"two thirds of that: {tokens * entry * 2 / 3 / 1e9:.0f} GB" in example
