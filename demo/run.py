"""The main job on real text, with the commands a user would type: python -m demo.run.

Corpus: Python's language reference as the standard library ships it, one topic in six held out.
What exists is used again; remove the folder .demo to start over.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

from demo.smollm2 import folder

ROOT = Path(".demo")
PROMPT = "The following identifiers are used as reserved words, or keywords of the language, and"
INGEST_CHARACTERS, HELD_OUT_CHARACTERS = 130_000, 24_000


def main() -> None:
    """Ingest, evaluate, generate; say what to type next."""
    started = time.monotonic()
    model = str(folder())
    write_corpus()
    store = f"faiss:{ROOT}/stores/python-reference"
    run("ingest", "--store", store, "--model", model, str(ROOT / "corpus"))
    run("eval", "--store", store, "--model", model, str(ROOT / "held-out"))
    generate = ["generate", "--store", store, "--model", model, "--max-new-tokens", "12"]
    print("\n# without the datastore")
    run(*generate, "--lmbda", "0", PROMPT)
    print("\n# with the datastore, and the documents that made the difference")
    run(*generate, "--explain", PROMPT)
    print(f"\nDone in {time.monotonic() - started:,.0f} s. For your own files, type:\n")
    print("  . .venv/bin/activate")
    print(f"  export KNNLM_STORE_MODEL={model}")
    print("  knnlm-store ingest --backend faiss --name mine FOLDER")
    print('  knnlm-store generate --store faiss:stores/mine --explain "A beginning"')
    print("  knnlm-store forget FOLDER/FILE --store faiss:stores/mine --verify")


def write_corpus() -> None:
    """Write topics to files, of every length, within the demo's time on two slow cores."""
    names = sorted(topics)
    held_out = names[3::6]
    written = [n for n in names if n not in set(held_out)]
    for where, chosen, characters in (
        ("corpus", written, INGEST_CHARACTERS),
        ("held-out", held_out, HELD_OUT_CHARACTERS),
    ):
        target = ROOT / where
        target.mkdir(parents=True, exist_ok=True)
        for name in within(chosen, characters):
            (target / f"{name}.txt").write_text(topics[name], encoding="utf-8")


def within(names: Iterable[str], characters: int) -> list[str]:
    """Choose documents in order while they fit into so many characters."""
    chosen: list[str] = []
    for name in names:
        if len(topics[name]) <= characters:
            chosen.append(name)
            characters -= len(topics[name])
    return chosen


def run(*arguments: str) -> None:
    """Show a command and run it; end the demo where it fails."""
    print("\n$ knnlm-store " + shlex.join(arguments), flush=True)
    code = subprocess.run([sys.executable, "-m", "knnlm_store", *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
