"""`python -m knnlm_store_lm_eval`: the harness's own command line, which then knows `knnlm`.

The harness looks for no plugins (0.4.13): a model that it does not ship must be imported first.
"""

from __future__ import annotations

import sys

from knnlm_store.cli.output import tell_error
from knnlm_store.errors import KnnlmError, UsageError
from knnlm_store.registry import require


def main() -> None:
    """Run it; a known error is one sentence and what to try next, exit code 1 or 2."""
    try:
        require("lm_eval.models.huggingface", "lm-eval")
        from lm_eval.__main__ import cli_evaluate

        import knnlm_store_lm_eval.model  # noqa: F401  registers the model

        cli_evaluate()
    except KnnlmError as error:
        tell_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
