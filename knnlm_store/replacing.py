"""Files that are written anew in one step: whoever reads one sees the old or the new one, whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is on the disk then; a link goes on leading to it, its mode stays."""
    real = Path(os.path.realpath(path))
    new = real.with_name(f".{real.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            if real.exists():  # before the content is in it, which may be for few eyes
                shutil.copymode(real, new)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(real)
    finally:
        new.unlink(missing_ok=True)
