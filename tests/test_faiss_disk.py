"""A disk that may not be written, and one that is full."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store.errors import StorageFull
from tests.faiss_support import connect, created, document, held, run
from tests.faults_servers import small_disk

# As root one may do anything, so another user asks.
AS_NOBODY = """
import shutil, tempfile
with tempfile.TemporaryDirectory() as own:  # what is imported late is, while it can be read
    rehearsal = created(Path(own) / "store")
    rehearsal.upsert(document(1, 4))
    rehearsal.search(document(1, 1).keys, 1)
    rehearsal.drop()
if os.getuid() == 0:
    os.setuid(65534)
def outcome(call):
    try:
        return call()
    except KnnlmError as error:
        return f"{type(error).__name__}: {error}"
root = Path(sys.argv[1])
open_, closed = connect(root / "readable"), connect(root / "closed")
print(open_.count(), open_.search(document(1, 1).keys, 2).ids.tolist())
print(outcome(lambda: open_.upsert(document(2, 3))))
print(outcome(lambda: open_.put_records({"a": b"1"})))
print(outcome(lambda: open_.drop()))
print(outcome(lambda: closed.count()))
print(outcome(lambda: created(root / "new")))
print(open_.count())
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    for path in root.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(root)


def test_without_permission_to_write(public: Path) -> None:
    """Reading works; writing, making and dropping are refused in a sentence; nothing changes."""
    for name, mode in (("readable", 0o555), ("closed", 0o000)):
        store = created(public / name)
        store.upsert(document(1, 40))
        store.close()
        for path in (public / name).iterdir():
            path.chmod(0o444)
        (public / name).chmod(mode)
    public.chmod(0o555)
    lines = run(AS_NOBODY, public).splitlines()
    public.chmod(0o755)
    assert lines[0].startswith("40 [[1, ")
    assert all(line.startswith("StoreNotWritable: This user has no perm") for line in lines[1:6])
    assert lines[6] == "40"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "512k") as disk:
        yield disk


def test_full_disk(disk: Path) -> None:
    """What was committed is intact and readable; writing goes on once there is space."""
    store = created(disk / "store")
    (disk / "ballast").write_bytes(bytes(200_000))
    written = 0

    def fill() -> None:
        nonlocal written
        while True:
            store.upsert(document(10_000 * (written + 1), 500))
            written += 1

    with pytest.raises(StorageFull, match="No space is left") as caught:
        fill()
    assert "Free some space" in caught.value.hint
    assert written > 2
    kept = held(store)
    assert len(kept) == 500 * written
    other = connect(disk / "store")
    assert held(other) == kept
    other.close()
    with pytest.raises(StorageFull):
        store.put_records({"large": bytes(300_000)})
    assert (store.search(document(10_000, 1).keys, 9).ids >= 10_000).all()
    (disk / "ballast").unlink()
    store.upsert(document(7, 500))
    assert store.count() == 500 * (written + 1)
    store.close()


@pytest.mark.parametrize("ci", ["", "true"])
def test_without_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    """Tests that want one are skipped, but never in CI, where nobody would notice."""
    mount = tmp_path / "mount"
    mount.write_text("#!/bin/sh\necho 'permission denied' >&2; exit 32\n")
    mount.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    outcome = pytest.fail.Exception if ci else pytest.skip.Exception
    with pytest.raises(outcome, match="refused: permission denied"), small_disk(tmp_path, "1m"):
        pass
