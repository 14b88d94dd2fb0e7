"""What a user sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from knnlm_store.errors import KnnlmError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from knnlm_store.corpus import Problem


LINE_SECONDS = 20.0
"""Time between lines of progress where there is no terminal to draw a bar on."""


def printable(text: str) -> str:
    """A text in which no character but a line break commands the terminal; one says what it is."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Write a line to stderr."""
    typer.echo(printable(text), err=True)


def tell_problems(problems: Sequence[Problem]) -> None:
    """Name every problem on stderr, one line each."""
    for problem in problems:
        kind = "failed" if problem.failed else "skipped"
        say(f"{kind}: {problem.where}: {problem.what}")


def tell_error(error: KnnlmError) -> None:
    """Say what went wrong, and what to try."""
    say(f"error: {error}")
    if error.hint:
        say(error.hint)


def confirm(question: str) -> None:
    """Ask, and raise KnnlmError unless the answer is yes."""
    typer.echo(printable(f"{question} [y/N]: "), err=True, nl=False)
    answer = sys.stdin.readline()
    if answer.strip().lower() in ("y", "yes"):
        return
    if not answer.endswith("\n"):  # nobody there to answer
        say("")
    raise KnnlmError("Nothing was removed.", hint="Add --yes to remove it without being asked.")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; infinities become null, which JSON can hold."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    typer.echo(json.dumps(_finite(value), ensure_ascii=ascii_only, indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up() -> None:
    """Send warnings of ours to stderr, and let no character end a command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    # only ours: libraries that write to stderr themselves would be heard twice
    for name in ("knnlm_store", "knnlm_store_faiss", "knnlm_store_milvus", "knnlm_store_qdrant"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING)


def console() -> Console:
    """Make a console on stderr that takes paths as they are."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def status(text: str) -> AbstractContextManager[Any]:
    """Show what is going on, while it goes on, on a terminal."""
    from rich.text import Text

    return console().status(Text(text))


class Progress:
    """The progress of long work, on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, what: str, total_bytes: int | None, bar: Any) -> None:
        self._what, self._total, self._bar = what, total_bytes, bar
        self._task = bar.add_task(what, total=total_bytes, told="")
        self._next_line = LINE_SECONDS

    def begin(self, what: str) -> None:
        """Turn to another part of the work, whose time counts anew."""
        self._what, self._next_line = what, LINE_SECONDS
        self._bar.update(self._task, description=what, total=None, completed=0, told="")

    def show(self, bytes_read: int, tokens: int, seconds: float) -> None:
        """Show how many bytes were read, how fast tokens come, how long the rest will take."""
        self._show(bytes_read, self._total, counted(tokens, "token"), tokens, seconds)

    def show_entries(self, done: int, total: int, seconds: float) -> None:
        """Show how many entries of how many are done."""
        self._show(done, total, f"{count(done)} of {counted(total, 'entry')}", done, seconds)

    def _show(self, done: int, total: int | None, what: str, n: int, seconds: float) -> None:
        told = f"{what}, {count(n / max(seconds, 1e-9))}/s"
        if total and done:
            told += f", {duration(seconds * (total - done) / done)} left"
        self._bar.update(self._task, total=total, completed=done, told=told)
        if self._bar.disable and seconds >= self._next_line:
            self._next_line = seconds + LINE_SECONDS
            say(f"{self._what}: {told}")


@contextmanager
def progress(what: str, total_bytes: int | None) -> Iterator[Progress]:
    """Give the progress display of long work; it leaves nothing behind."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    err = console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Bar(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield Progress(what, total_bytes, bar)


def duration(seconds: float) -> str:
    """Write a time for people, roughly."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
