"""The compose files: by the tools of their trade, and by our rules; no container engine."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.deploy_support import DEPLOY, Model, tool

COMPOSE = sorted(DEPLOY.glob("*/*compose.yaml"))
SECRETS = {"QDRANT_API_KEY": "s3", "MILVUS_ROOT_PASSWORD": "s4", "MINIO_PASSWORD": "s5"}

Fault = Callable[[Model], object]


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


# -- YAML ------------------------------------------------------------------------------------------


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return tool("yamllint", "--strict", "--config-file", DEPLOY / ".yamllint", path)


def test_yaml_is_tidy(tmp_path: Path) -> None:
    done = lint(DEPLOY)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "twice.yaml").write_text("services:\n  a: 1\n  a: 2\n")
    assert "duplication of key" in lint(tmp_path / "twice.yaml").stdout


# -- compose files ---------------------------------------------------------------------------------


def compose(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return tool("docker-compose", "--file", path, "config", "--format", "json", **environment)


def rendered(path: Path) -> Model:
    done = compose(path, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    model: Model = json.loads(done.stdout)
    return model


def compose_faults(model: Model) -> Iterator[str]:
    """What is wrong with a rendered compose file by the rules of this project."""
    volumes = set(model.get("volumes") or {})
    for name, service in model["services"].items():
        tag = service["image"].rpartition(":")[2]
        if not re.fullmatch(r"(v\d+\.\d+\.\d+(-unprivileged)?|RELEASE\.\d{4}-[\dTZ-]+)", tag):
            yield f"{name}: the image is not pinned"
        if not service.get("healthcheck", {}).get("test"):
            yield f"{name}: no healthcheck"
        if any(port.get("host_ip") != "127.0.0.1" for port in service.get("ports", [])):
            yield f"{name}: a port open to others"
        if service.get("restart") != "unless-stopped":
            yield f"{name}: not started again"
        if not int(service.get("deploy", {}).get("resources", {}).get("limits", {})["memory"]):
            yield f"{name}: no limit of memory"
        mounts = service.get("volumes", [])
        if not mounts or any(m["type"] != "volume" or m["source"] not in volumes for m in mounts):
            yield f"{name}: data on no named volume"
        secret = re.compile("KEY|PASSWORD|SECRET|TOKEN")
        for variable, value in service.get("environment", {}).items():
            known = value in SECRETS.values() or variable == "MINIO_ACCESS_KEY_ID"
            if secret.search(variable) and not known:
                yield f"{name}: {variable} in the file"


@pytest.mark.parametrize("path", COMPOSE, ids=named)
def test_compose_file(path: Path) -> None:
    assert list(compose_faults(rendered(path))) == []


def test_compose_files_are_all_there() -> None:
    assert [named(path) for path in COMPOSE] == [
        "milvus/compose.yaml",
        "qdrant/cluster.compose.yaml",
        "qdrant/compose.yaml",
    ]


@pytest.mark.parametrize("path", COMPOSE, ids=named)
def test_no_key_no_server(path: Path) -> None:
    """Each secret is asked for by name, also where the variable is empty; none has a default."""
    asked = set(re.findall(r"\$\{(\w+):\?", path.read_text())) & set(SECRETS)
    assert asked
    for missing in asked:
        for rest in ({**SECRETS, missing: ""}, {k: v for k, v in SECRETS.items() if k != missing}):
            done = compose(path, **rest)
            assert done.returncode != 0
            assert f"required variable {missing} is missing" in done.stderr


COMPOSE_FAULTS: dict[str, Fault] = {
    "not pinned": lambda s: s.update(image="qdrant/qdrant:latest"),
    "no healthcheck": lambda s: s.pop("healthcheck"),
    "open to others": lambda s: s["ports"][0].pop("host_ip"),
    "started again": lambda s: s.pop("restart"),
    "no limit": lambda s: s["deploy"]["resources"]["limits"].update(memory="0"),
    "no named volume": lambda s: s["volumes"][0].update(type="bind"),
    "in the file": lambda s: s["environment"].update(QDRANT__SERVICE__API_KEY="letmein"),
}


@pytest.mark.parametrize("words", COMPOSE_FAULTS)
def test_a_fault_in_a_compose_file_is_found(words: str) -> None:
    model = rendered(DEPLOY / "qdrant" / "compose.yaml")
    COMPOSE_FAULTS[words](model["services"]["qdrant"])
    (fault,) = compose_faults(model)
    assert words in fault


def test_a_misspelt_field_is_found(tmp_path: Path) -> None:
    text = (DEPLOY / "qdrant" / "compose.yaml").read_text()
    (tmp_path / "compose.yaml").write_text(text.replace("healthcheck:", "healthchek:"))
    done = compose(tmp_path / "compose.yaml", **SECRETS)
    assert done.returncode != 0
    assert "healthchek" in done.stderr


def test_the_three_nodes_find_each_other() -> None:
    services = rendered(DEPLOY / "qdrant" / "cluster.compose.yaml")["services"]
    assert set(services) == {"qdrant-1", "qdrant-2", "qdrant-3"}
    published = [port["published"] for s in services.values() for port in s["ports"]]
    assert len(set(published)) == 6
    for name, service in services.items():
        assert service["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        assert 6335 not in [port["target"] for port in service["ports"]]
        options = dict(zip(service["command"][1::2], service["command"][2::2], strict=True))
        first = {} if name == "qdrant-1" else {"--bootstrap": "http://qdrant-1:6335"}
        assert options == {"--uri": f"http://{name}:6335", **first}
        assert list(service.get("depends_on", {})) == (["qdrant-1"] if first else [])


@contextmanager
def http(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that answers with this status; its port, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def test_qdrants_healthcheck_works() -> None:
    """Run as in the image, which has bash: ready, not ready, and not there."""
    cluster = rendered(DEPLOY / "qdrant" / "cluster.compose.yaml")["services"]
    (one,) = rendered(DEPLOY / "qdrant" / "compose.yaml")["services"].values()
    command = one["healthcheck"]["test"]
    assert all(node["healthcheck"]["test"] == command for node in cluster.values())
    assert command[0] == "CMD"

    def check(port: int) -> int:
        words = [word.replace("$$", "$").replace("6333", str(port)) for word in command[1:]]
        return subprocess.run(words, capture_output=True, timeout=10, check=False).returncode

    with http(200) as (port, asked):
        assert check(port) == 0
        assert asked == ["/readyz"]
    assert check(port) != 0
    with http(503) as (port, _):
        assert check(port) != 0
