"""Every benchmark that needs no corpus of its own, one after another: python -m benchmarks.run."""

from __future__ import annotations

from benchmarks import forward, generation, memory, search, startup

if __name__ == "__main__":
    for benchmark in (startup, memory, search, generation, forward):
        benchmark.main()
