"""`knnlm-store`, which is `python -m knnlm_store`."""

from __future__ import annotations

from knnlm_store.cli.interrupt import end_on_interrupt


def main() -> None:
    """Run a command. Ctrl-C is seen to before the commands are imported."""
    end_on_interrupt()
    from knnlm_store.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
