"""Killed at any instant, several at once: what was acknowledged is there, and nothing torn."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from knnlm_store.values import Spec
from knnlm_store_faiss.datafiles import leftovers
from tests.faiss_support import connect, created, document, held, run, start

BATCH = 50

WRITE_ON = """
store, i = connect(Path(sys.argv[1])), int(sys.argv[2])
while True:
    store.upsert(Entries.concatenate(batches(i)))
    print(i, flush=True)
    i += 1
"""

BATCHES = """
from knnlm_store.values import Entries
def batches(i):
    return [document(1000 * i, 50, token=i), document(1000 * (i - 1), 10, token=i, first=20)]
"""


def after(batches: int) -> dict[int, int]:
    """What the datastore holds after so many batches of WRITE_ON."""
    model: dict[int, int] = {}
    for i in range(1, batches + 1):
        model |= dict.fromkeys(range(1000 * i, 1000 * i + BATCH), i)
        model |= dict.fromkeys(range(1000 * (i - 1) + 20, 1000 * (i - 1) + 30), i)
    return model


def test_killed_while_writing(tmp_path: Path) -> None:
    """Each time a prefix of the batches is there, with at most one more than acknowledged."""
    folder, chance, done = tmp_path / "store", random.Random(0), 0
    created(folder).close()
    for _ in range(6):
        with start(BATCHES + WRITE_ON, folder, done + 1) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 8)):
                acknowledged = int(process.stdout.readline())
            time.sleep(chance.random() * 0.004)
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        store = connect(folder)
        now = held(store)
        done = acknowledged if now == after(acknowledged) else acknowledged + 1
        assert now == after(done)
        assert len(next(store.scan(with_keys=True)).keys)
        store.close()


# Runs an action on copies of a folder; the n-th copy's process dies at its n-th step on disk.
DIE_AT_EACH_STEP = """
import shutil, signal

def armed(function, fuse):
    def step(*arguments, **options):
        fuse[0] -= 1
        if not fuse[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return step

def act(store, action):
    if action == "upsert":
        store.upsert(document(2000, 30, token=9, first=10))
    elif action == "compact":
        store.compact()
    else:
        store.drop()

source, action = sys.argv[1:]
steps = 0
while True:
    steps += 1
    copy = f"{source}-{action}-{steps}"
    shutil.copytree(source, copy)
    child = os.fork()
    if not child:
        fuse = [steps]
        os.fsync, os.pwrite = armed(os.fsync, fuse), armed(os.pwrite, fuse)
        Path.unlink, Path.rename = armed(Path.unlink, fuse), armed(Path.rename, fuse)
        act(connect(Path(copy)), action)
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        break
print(steps)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three documents of which the second is deleted."""
    folder = tmp_path / "store"
    store = created(folder)
    for number in (1000, 1500, 2000):
        store.upsert(document(number, 40, token=1))
    store.delete([1500])
    store.close()
    return folder


@pytest.mark.parametrize(("action", "steps"), [("upsert", 4), ("compact", 9)])
def test_killed_at_each_step(source: Path, action: str, steps: int) -> None:
    """Either the old or the new state opens, and the next write cleans up."""
    store = connect(source)
    old = held(store)
    store.close()
    new = old | dict.fromkeys(range(2010, 2040), 9) if action == "upsert" else old
    count = int(run(DIE_AT_EACH_STEP, source, action))
    assert count >= steps
    for step in range(1, count + 1):
        copy = source.with_name(f"{source.name}-{action}-{step}")
        store = connect(copy)
        now = held(store)
        assert now == (new if step == count else old)
        store.upsert(document(7000, 5, token=3))
        assert held(store) == now | dict.fromkeys(range(7000, 7005), 3)
        generation = max(int(path.suffix[1:]) for path in copy.glob("keys.*"))
        assert leftovers(copy, generation) == []
        store.compact()
        assert len(held(store)) == len(now) + 5
        store.close()


def test_killed_while_dropping(source: Path) -> None:
    """The datastore is there, or it is gone and its name is free."""
    for step in range(1, int(run(DIE_AT_EACH_STEP, source, "drop")) + 1):
        store = connect(source.with_name(f"{source.name}-drop-{step}"))
        if store.exists():
            assert store.count() == 80
            store.drop()
        store.create(Spec(4, "int8"), {})
        assert store.count() == 0
        store.close()


WRITE_IN_TURN = """
store, mine = connect(Path(sys.argv[1])), int(sys.argv[2])
for i in range(30):
    store.upsert(document(mine, 5, token=mine, first=5 * i))
    store.put_records({f"{mine}/{i}": b"x"})
    if i % 10 == 9:
        store.upsert(document(mine + 10**6, 3))
        store.delete([mine + 10**6])
        store.compact()
"""


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    store = created(tmp_path / "store")
    writers = [start(WRITE_IN_TURN, tmp_path / "store", mine) for mine in (1000, 2000)]
    for writer in writers:
        with writer:
            assert writer.wait(120) == 0
    assert held(store) == {m + i: m for m in (1000, 2000) for i in range(150)}
    assert len(list(store.scan_records("1000/"))) == 30
    assert len(list(store.scan_records(""))) == 61
    store.close()


CREATE_MANY = """
won = []
for i in range(25):
    try:
        created(Path(sys.argv[1]) / f"store{i}").close()
    except StoreExists:
        continue
    won.append(i)
print(*won)
"""


def test_one_of_two_creators_wins_each_time(tmp_path: Path) -> None:
    creators = [start(CREATE_MANY, tmp_path) for _ in range(2)]
    won = [list(map(int, creator.communicate(timeout=120)[0].split())) for creator in creators]
    assert sorted(won[0] + won[1]) == list(range(25))
    assert not list(tmp_path.glob(".*"))


def test_open_reader_sees_another_process(tmp_path: Path) -> None:
    """Writes, deletions, a compaction and a drop, all by others."""
    reader = created(tmp_path / "store")
    for number in (1, 100):
        reader.upsert(document(number, 20))
    query = document(1, 20).keys[:1]
    assert reader.search(query, 1).ids[0, 0] == 1
    change = "store = connect(Path(sys.argv[1]))\n"
    run(change + "store.delete([1]); store.upsert(document(500, 20))", tmp_path / "store")
    assert set(reader.search(query, 99).documents[0]) == {100, 500, -1}
    scan = reader.scan(batch_size=15, with_keys=True)
    begun = len(next(scan))
    run(change + "store.compact(); store.delete([100])", tmp_path / "store")
    assert begun + sum(len(batch) for batch in scan) == 40  # goes on over the files it began with
    assert set(reader.search(query, 99).documents[0]) == {500, -1}
    run(change + "store.drop()", tmp_path / "store")
    assert not reader.exists()
    reader.close()
