"""Time of `knnlm-store --help`, and of the interpreter alone. Run: python -m benchmarks.startup."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.common import report, timed

ROUNDS = 10


def median_of(*command: str) -> float:
    """Median seconds of a command."""
    return statistics.median(
        timed(lambda: subprocess.run(command, check=True, capture_output=True))
        for _ in range(ROUNDS)
    )


def main() -> None:
    """Print medians of ten runs."""
    report(
        "startup",
        {
            "help_seconds": median_of(sys.executable, "-m", "knnlm_store", "--help"),
            "interpreter_seconds": median_of(sys.executable, "-c", "pass"),
        },
    )


if __name__ == "__main__":
    main()
