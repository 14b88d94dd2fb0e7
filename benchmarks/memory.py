"""Peak memory of `knnlm-store ingest` at 20 and 60 thousand tokens, each in its own process.

Run: python -m benchmarks.memory
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from benchmarks.common import report

_CHILD = """
import json, resource, sys
from benchmarks.common import documents, language_model
from knnlm_store.datastore import Datastore
from knnlm_store.ingest import ingest
model = language_model()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = Datastore.open_or_create(f"faiss:{sys.argv[2]}/memory", model.manifest())
ingest(documents(int(sys.argv[1]), model), model, store)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"model_loaded_mib": before / 1024, "peak_mib": after / 1024}))
"""


def main() -> None:
    """Print peaks in MiB."""
    figures = {}
    for tokens in (20_000, 60_000):
        with tempfile.TemporaryDirectory() as scratch:
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, str(tokens), scratch],
                capture_output=True,
                text=True,
                check=True,
            )
        figures[f"tokens_{tokens}"] = json.loads(child.stdout.splitlines()[-1])
    report("memory", figures)


if __name__ == "__main__":
    main()
