"""`python -m knnlm_store` is `knnlm-store`."""

from knnlm_store.cli.main import main

if __name__ == "__main__":
    main()
