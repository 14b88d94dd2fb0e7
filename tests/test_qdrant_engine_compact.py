"""Files of the embedded engine made anew: what is kept, what goes, and what a death leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from knnlm_store.backend import Compactable
from knnlm_store.values import Location
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import build as building
from knnlm_store_qdrant.engine import collection as module
from knnlm_store_qdrant.engine.collection import Collection
from knnlm_store_qdrant.engine.files import Space
from knnlm_store_qdrant.engine.refusal import Refused
from knnlm_store_qdrant.engine.rewriting import Wishes
from knnlm_store_qdrant.engine.settings import checked
from tests.qdrant_engine_support import (
    DIMENSION,
    Engine,
    clustered,
    create,
    engine,
    files,
    fill,
    http,
    index,
    kill,
    name,
    opened,
    start,
    until,
)

__all__ = ["engine", "http", "name"]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Collection]:
    """A collection of 300 points, of which the odd ones are deleted."""
    vectors = models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID)
    settings = checked(models.CreateCollection(vectors=vectors))
    made = Collection.make(tmp_path / "x", Space(tmp_path, 0), "x", settings)
    made.write(edge.UpdateOperation.create_field_index("d", edge.PayloadSchemaType.Integer))
    made.write(upsert(range(300)), 300)
    made.write(edge.UpdateOperation.delete_points(list(range(1, 300, 2))))
    yield made
    made.close()


def upsert(ids: range) -> edge.UpdateOperation:
    keys = clustered(ids.stop, 5)
    points = [edge.Point(i, keys[i].tolist(), {"d": i}) for i in ids]
    return edge.UpdateOperation.upsert_points(points)


def there(held: Collection) -> list[int]:
    found, after = held.shard.scroll(edge.ScrollRequest(limit=10_000))
    assert after is None
    return sorted(int(str(point.id)) for point in found)


EVEN = list(range(0, 300, 2))


def test_a_collection_is_what_it_was(engine: Engine, http: httpx.Client, name: str) -> None:
    """Settings, indexes, aliases, points of every kind; and the wish is granted but once."""
    client = engine[1]
    create(client, name, datatype=models.Datatype.FLOAT16, metadata={"a": 1})
    client.create_payload_index(name, "text", models.PayloadSchemaType.KEYWORD)
    fill(client, name, clustered(700, 1))
    odd = models.PointStruct(id=str(UUID(int=7)), vector=[0.5] * DIMENSION, payload={"text": "ä"})
    client.upsert(name, [odd], wait=True)
    assert index(client, name).indexed_vectors_count == 701
    client.delete(name, models.PointIdsList(points=list(range(100))), wait=True)
    alias = models.CreateAlias(collection_name=name, alias_name=f"{name}-too")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    before, points = client.get_collection(name), everything(client, name)
    until(lambda: granted(http, f"{name}-too", "a wish"), "new files")
    after = client.get_collection(name)
    assert (after.config, after.payload_schema) == (before.config, before.payload_schema)
    assert after.indexed_vectors_count == after.points_count == 601
    assert everything(client, name) == points
    query = models.QueryRequest(query=[0.5] * DIMENSION, limit=1)
    hits = client.query_batch_points(name, [query])[0].points
    assert [hit.id for hit in hits] == [odd.id]
    assert not granted(http, name, "a wish")  # which is another by now


def granted(http: httpx.Client, name: str, wish: str) -> bool:
    reply = http.post(f"/collections/{name}/compact", params={"wish": wish})
    assert reply.status_code == 200
    return bool(reply.json()["result"]["status"] == "completed")


def everything(client: QdrantClient, name: str) -> list[models.Record]:
    return client.scroll(name, limit=10_000, with_payload=True, with_vectors=True)[0]


def test_an_engine_that_dies_meanwhile_begins_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as (endpoint, client):
        create(client, "x")
        fill(client, "x", clustered(2000, 1))
        client.delete("x", models.PointIdsList(points=list(range(500))), wait=True)
        with httpx.Client(headers={"api-key": endpoint.api_key}, trust_env=False) as http:
            http.base_url = endpoint.url
            assert not granted(http, "x", "a wish")
            until(lambda: len(files(tmp_path)) > 1, "copy")
            kill(endpoint)
            endpoint.restart_if_dead()
            http.base_url = endpoint.url
            assert client.count("x").count == 1500
            until(lambda: granted(http, "x", "a wish"), "new files")
        assert client.count("x").count == 1500
        assert len(files(tmp_path)) == 1


def test_servers_compact_by_themselves(tmp_path: Path) -> None:
    assert not issubclass(QdrantBackend, Compactable)
    folder = Location("qdrant", str(tmp_path / "none"), "law")
    assert isinstance(QdrantBackend.connect(folder), Compactable)


# -- one collection, in this process -----------------------------------------------------------


def test_what_is_written_meanwhile_is_kept(
    held: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = building.build

    def busy(*arguments: Any) -> bool | None:
        held.write(upsert(range(300, 330)), 30)
        held.write(edge.UpdateOperation.delete_points([0, 2, 300]))
        done = build(*arguments)
        for i in range(400, 420):
            held.write(upsert(range(i, i + 1)), 1)
        return done

    monkeypatch.setattr(module, "build", busy)
    held._rewrite()
    assert there(held) == [*EVEN[2:], *range(301, 330), *range(400, 420)]
    assert set(held.shard.info().payload_schema) == {"d"}


def test_too_much_written_meanwhile(held: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused; nothing is lost, and the next time may do."""
    build = building.build

    def busy(*arguments: Any) -> bool | None:
        held.write(upsert(range(300, 330)), 30)
        return build(*arguments)

    monkeypatch.setattr(module, "build", busy)
    monkeypatch.setattr(module, "_LOG_POINTS", 10)
    with pytest.raises(Refused, match="faster than compacted") as told:
        held._rewrite()
    assert told.value.status == 503
    assert there(held) == [*EVEN, *range(300, 330)]
    monkeypatch.undo()
    held._rewrite()
    assert there(held) == [*EVEN, *range(300, 330)]
    assert len(list(held.folder.glob("files-*"))) == 1


def test_what_fails_is_told_and_changes_nothing(
    held: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = held.folder.glob("files-*")
    monkeypatch.setattr(module, "copy_tree", lambda _, target: target.mkdir())
    assert not held.wishes.granted("a wish")
    held.rewrite_if_wanted()
    with pytest.raises(Refused, match="compacting failed with status 1"):
        held.wishes.granted("a wish")
    held._space = Space(held.folder, 1 << 60)
    with pytest.raises(Refused, match="No space left"):
        held._rewrite()
    assert list(held.folder.glob("files-*")) == [before]
    assert there(held) == EVEN


def test_wishes() -> None:
    """What came of one is told once; who wished after the work began waits for the next."""
    wishes, refused, done = Wishes(), Refused(500, "no"), []

    def work() -> None:
        assert not wishes.granted("first")
        assert not wishes.granted("second")
        done.append(1)

    def fail() -> None:
        raise refused

    wishes.grant(work)
    assert not done
    assert not wishes.granted("first")
    wishes.grant(work)
    assert wishes.granted("first")
    assert not wishes.granted("second")
    wishes.grant(fail)
    with pytest.raises(Refused) as told:
        wishes.granted("second")
    assert told.value is refused
    assert done == [1]


def test_a_panic_is_told_as_well() -> None:
    wishes = Wishes()
    assert not wishes.granted("a")

    def panic() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wishes.grant(panic)
    with pytest.raises(Refused, match="compacting broke off"):
        wishes.granted("a")


KILLED = """
from pathlib import Path
import qdrant_edge as edge
from knnlm_store_qdrant.engine import build as building
from knnlm_store_qdrant.engine import collection as module
from knnlm_store_qdrant.engine.collection import Collection
from knnlm_store_qdrant.engine.files import Space, copy_tree

def dying(owner, name, after):
    original = getattr(owner, name)
    def die(*arguments, **named):
        if after:
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, die)

def assert_whole(collection):
    found, _ = collection.shard.scroll(edge.ScrollRequest(limit=1000))
    assert sorted(point.id for point in found) == list(range(0, 300, 2))

def in_a_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def check():
    found = Collection.read(place, Space(place, 0))
    assert_whole(found)
    found.write(edge.UpdateOperation.delete_points([1]))
    assert len(list(place.glob("files-*"))) == 1
    assert_whole(found)

for owner, name, after in ((module, "copy_tree", True), (module, "build", True),
                           (module, "write_json", False), (module, "write_json", True),
                           (module.shutil, "rmtree", True)):
    place = Path(sys.argv[1]) / f"{name}{after}"
    copy_tree(Path(sys.argv[2]), place)

    def work():
        found = Collection.read(place, Space(place, 0))
        dying(owner, name, after)
        found._rewrite()

    assert in_a_child(work) == -signal.SIGKILL, name
    assert in_a_child(check) == 0, name
print("whole")
"""


def test_killed_at_any_instant_it_is_whole(held: Collection, tmp_path: Path) -> None:
    held.flush()
    with start(KILLED, tmp_path, held.folder) as process:
        said, errors = process.communicate(timeout=100)
    assert said == "whole\n", errors
