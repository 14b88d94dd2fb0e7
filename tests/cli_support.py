"""Runs the command line as its entry point does, in this process or in another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from knnlm_store.cli.main import main
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord

COMMAND = [sys.executable, "-W", "error", "-m", "knnlm_store"]
STORE = "faiss:stores/law"
WITH_MODEL = ("ingest", "eval", "generate")
ANOTHER = "Use that model, or ingest under another --name."
TEXTS = {
    "a.txt": "The creditor shall disclose the annual rate. " * 6,
    "b.md": "A consumer may cancel within three days. " * 5,
    "deep/c.txt": "Nothing in this part limits the seller. " * 4,
}


@dataclass
class Run:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Stdout, which must be one JSON object and nothing else, of a command that went well."""
        assert self.code == 0, self.err
        value: dict[str, Any] = json.loads(self.out)
        return value

    def failure(self) -> tuple[int, str, str]:
        """Exit code, message and hint of a command that said one sentence and wrote nothing."""
        assert self.out == ""
        assert "Traceback" not in self.err
        message, hint = self.err.splitlines()
        assert message.startswith("error: ")
        assert message.endswith(".")
        return self.code, message.removeprefix("error: "), hint


def run(*arguments: object, stdin: bytes = b"") -> Run:
    """Run `knnlm-store ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        patch.object(sys, "argv", ["knnlm-store", *map(str, arguments)]),
        patch.object(sys, "stdin", given),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return Run(int(code or 0), out.getvalue(), err.getvalue())


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `knnlm-store ARGUMENTS` as a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], text=True, **pipes | options)


def finish(process: subprocess.Popen[str]) -> Run:
    out, err = process.communicate(timeout=120)
    return Run(process.returncode, out, err)


def python(script: str, *arguments: object, **options: Any) -> Run:
    """Run a script that may start with `main`, the entry point."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return finish(
        subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
    )


def write_corpus(folder: Path, texts: dict[str, str] | None = None) -> Path:
    for name, text in (TEXTS if texts is None else texts).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def documents(store: str) -> dict[str, DocumentRecord]:
    with Datastore.open(store) as opened:
        return {document.id: document for document in opened.documents()}


def contents(store: str) -> str:
    """Digest of all that a datastore holds: its entries in order of id, and its documents."""
    digest = hashlib.sha256()
    with Datastore.open(store) as opened:
        entries = list(opened.backend.scan(with_keys=True))
        rows = sorted(
            (int(i), int(t), key.tobytes())
            for batch in entries
            for i, t, key in zip(batch.ids, batch.tokens, batch.keys, strict=True)
        )
        digest.update(repr(rows).encode())
        for document in opened.documents():
            digest.update(document.encode())
        digest.update(repr(opened.manifest).encode())
    return digest.hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(name: str, *options: object, store: str = STORE) -> tuple[object, ...]:
    """A command that is right but for its options."""
    last = "The creditor" if name == "generate" else "law"
    return (name, "--store", store, *options, last)


def quiet(name: str) -> list[object]:
    """With a temperature of the user's there is nothing to announce."""
    return [] if name == "ingest" else ["--temperature", 1]
