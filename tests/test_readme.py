"""What the README shows is run, so that it cannot lie."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.qdrant_engine_support import alone

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# `make test` runs without an activated environment: the command lies beside the interpreter
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts that the README speaks of."""
    root = tmp_path_factory.mktemp("readme")
    for folder, times in (("corpus", 5), ("held-out", 5), ("valid", 60)):
        (root / folder).mkdir()
        (root / folder / "a.txt").write_text("The creditor shall disclose. " * times)
    return root


def test_the_commands(place: Path, saved_model: Path) -> None:
    """Every command of the first block, in order, with a tiny model in place of the hub's."""
    run_all(commands("sh"), place, saved_model)
    assert not (place / "stores" / "law").exists()


def test_the_commands_on_a_server(place: Path, saved_model: Path, tmp_path: Path) -> None:
    """Those of the second block, with Qdrant's engine in place of a server."""
    with alone(tmp_path / "engine", "--port", "0") as (_, said):
        here = f"127.0.0.1:{said['port']}"
        moved = [command.replace("localhost:6333", here) for command in commands("bash")]
        run_all(moved, place, saved_model, KNNLM_STORE_URL=f"http://{here}")
    assert (place / "backup" / "law").exists()


def commands(language: str) -> list[str]:
    found = [
        line.split("#")[0] for line in block(language).splitlines() if line.startswith("knnlm")
    ]
    assert len(found) >= 5
    return found


def run_all(chosen: list[str], place: Path, model: Path, **variables: str) -> None:
    environment = {**os.environ, "PATH": PATH, "KNNLM_STORE_MODEL": str(model), **variables}
    for command in chosen:
        done = subprocess.run(
            command,
            shell=True,
            cwd=place,
            env=environment,
            input="y\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_python_lines(
    place: Path, saved_model: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.chdir(place)
    command = f"knnlm-store ingest --store faiss:stores/law --model {saved_model} corpus/"
    subprocess.run(command, shell=True, check=True, capture_output=True)
    torch.manual_seed(0)
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert names["lm"].counters.mixed > 0


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
