"""What only a process of its own can show: imports, streams, signals, a closed pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from knnlm_store import intents
from knnlm_store.datastore import Datastore
from knnlm_store.intents import Intent
from tests.cli_support import COMMAND, Run, documents, finish, python, run, spawn, write_corpus

STORE = "faiss:stores/law"
HELP = """
import json, sys
from knnlm_store.cli.main import main
heavy = {"numpy", "torch", "transformers", "faiss", "pyarrow", "datasets", "tenacity"}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["knnlm-store", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments
    found = sorted(heavy & set(sys.modules))
    assert not found, (arguments, found)
"""
INTERRUPTED_IMPORT = """
import os, signal, sys
from knnlm_store.__main__ import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == where:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
where = sys.argv.pop(1)
main()
"""
COMMANDS = ("ingest", "eval", "generate", "info", "ls", "rm", "compact")
MANY = {f"{i:02}.txt": f"Article {i} of the code says this. " * 12 for i in range(30)}
# one that is in hand for long, so that a second Ctrl-C comes before its end on any machine
LONG = {"00.txt": MANY["01.txt"] * 30}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def test_help_imports_nothing_heavy() -> None:
    each = ", ".join(f'["{command}", "--help"]' for command in COMMANDS)
    told = python(HELP, f'[["--help"], ["--version"], {each}]')
    assert told.code == 0, told.err
    for command in COMMANDS:
        assert f"Usage: knnlm-store {command} " in told.out
    for panel in ("Datastore", "Model", "Mixing", "Reading documents", "Generation", "Datastores"):
        assert f"─ {panel} ─" in told.out
    assert "knnlm-store ingest --backend faiss --model MODEL corpus/" in told.out


def test_every_option_is_explained() -> None:
    for command in ("ingest", "eval", "generate"):
        told = run(command, "--help").out
        inside = [line.strip("│ *") for line in told.splitlines() if line.startswith("│")]
        lines = [line for line in inside if line.startswith("--")]
        assert len(lines) > 10
        for line in lines:
            option, _, rest = line.partition(">")
            assert len(rest.strip("] ")) > 10, option


# -- Ctrl-C ------------------------------------------------------------------------------------


def slow_ingest(corpus: Path) -> subprocess.Popen[str]:
    """Start an ingest that takes long, and wait until it writes entries."""
    arguments = ("ingest", "--store", STORE, corpus, "--window", 16, "--json")
    process = spawn(*arguments, start_new_session=True)
    tokens = Path("stores/law/tokens.1")
    wait_for(lambda: tokens.exists() and tokens.stat().st_size > 4000, process)
    return process


def wait_for(happens: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_completes(corpus: Path, texts: dict[str, str]) -> None:
    """The same command again ends with what an uninterrupted run would have given."""
    done = run("ingest", "--store", STORE, corpus, "--batch-size", 64, "--json").json()
    assert done["documents"]["failed"] == 0
    assert done["store"]["entries"] == sum(map(len, texts.values()))
    kept = documents(STORE)
    assert set(kept) == {f"law/{name}" for name in texts}
    assert not any(d.stale for d in kept.values())
    assert in_hand() == []


def in_hand() -> list[Intent]:
    with Datastore.open(STORE) as store:
        return list(intents.scan(store.backend))


def test_ctrl_c_once_ends_cleanly(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "law", MANY)
    process = slow_ingest(corpus)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    stopping, ended = done.err.splitlines()
    assert re.fullmatch(
        r"Stopping after the \d documents? in hand; press Ctrl-C again to stop at once\.", stopping
    )
    assert ended == "Interrupted. Run the same command to go on."
    report = json.loads(done.out)  # alone there, whatever libraries write to the descriptor
    assert report["interrupted"]
    kept = documents(STORE)
    assert 0 < len(kept) == report["documents"]["added"] < len(MANY)
    assert in_hand() == []
    assert run("info", STORE, "--json").json()["entries"] == sum(
        d.version.tokens for d in kept.values()
    )
    assert_completes(corpus, MANY)


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "law", LONG)
    process = slow_ingest(corpus)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Stopping after the 1 document in hand; press")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert (done.out, done.err) == ("", "Stopped. Run the same command to go on.\n")
    assert_completes(corpus, LONG)


@pytest.mark.parametrize("where", ["torch", "transformers.generation.utils"])
def test_ctrl_c_during_imports(tmp_path: Path, where: str) -> None:
    """Ctrl-C comes as a module is looked for, where an exception would be told at length."""
    write_corpus(tmp_path / "law")
    assert run("ingest", "--store", STORE, "law").code == 0
    for command in (("ingest", "--store", STORE, "law"), ("generate", "--store", STORE, "The")):
        done = python(INTERRUPTED_IMPORT, where, *command)
        assert (done.code, done.out, done.err) == (130, "", "Stopped by Ctrl-C.\n")


def test_ctrl_c_while_text_is_made() -> None:
    write_corpus(Path("law"))
    assert run("ingest", "--store", STORE, "law").code == 0
    process = spawn("generate", "--store", STORE, "--temperature", 1, "The " * 40, "A " * 40)
    assert process.stdout is not None
    assert process.stdout.read(8) == "The The "
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert (done.code, done.err) == (130, "Stopped by Ctrl-C.\n")


def test_a_process_that_is_not_to_be_interrupted() -> None:
    """As a shell starts it in the background of a script."""
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = spawn(
        "generate", "--store", STORE, "--model", "none", stdin=subprocess.PIPE, **ignoring
    )
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 2
    assert "There is no prompt." in done.err


# -- a reader that leaves ------------------------------------------------------------------------


def closed_early(*arguments: object) -> Run:
    reader, writer = os.pipe()
    os.close(reader)
    process = spawn(*arguments, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=120)
    return Run(process.returncode, "", err)


def test_stdout_closed_early(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "law")
    assert run("ingest", "--store", STORE, corpus).code == 0
    told = closed_early("info", STORE)
    assert (told.code, told.err) == (1, "")
    told = closed_early("generate", "--store", STORE, "--temperature", 1, "The", "A")
    assert (told.code, told.err) == (1, "")
    command = " ".join(COMMAND)
    head = subprocess.run(
        f"{command} info {STORE} | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert head.stdout == f"name:           {STORE.rpartition('/')[2]}\n"
    assert head.stderr == ""
