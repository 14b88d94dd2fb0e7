"""The manifests and the image: by the tools of their trade, and by our rules; nothing starts."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy_support import (
    DEPLOY,
    KUBERNETES,
    KUSTOMIZATION,
    MANIFESTS,
    ROOT,
    VERSION,
    Model,
    job_and_cronjob,
    objects,
    tool,
)

Fault = Callable[[Model], object]


def validate(*paths: Path) -> subprocess.CompletedProcess[str]:
    return tool("kubernetes-validate", "--strict", *paths)


def rights(pod: Model) -> Iterator[str]:
    """What a pod may do and need not."""
    if not pod["securityContext"].get("runAsNonRoot"):
        yield "may run as root"
    if pod["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a token of the cluster"
    for container in pod["containers"]:
        if container["securityContext"] != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield "has rights it does not need"


def pod_faults(job: Model, there: dict[tuple[str, str], Model]) -> Iterator[str]:
    """What is wrong with a Job's spec by the rules of this project."""
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    yield from rights(pod)
    if not {"cpu", "memory"} <= set(container["resources"]["requests"]):
        yield "asks for no resources"
    if not job.get("backoffLimit") or "memory" not in container["resources"]["limits"]:
        yield "no limit"
    if container["image"] != f"knnlm-store:{VERSION}":
        yield "not the image of this version"
    if {m["name"] for m in container["volumeMounts"]} != {v["name"] for v in pod["volumes"]}:
        yield "volumes and mounts differ"
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    if any(("PersistentVolumeClaim", claim["claimName"]) not in there for claim in claims):
        yield "no claim of that name"
    if any(re.search("KEY|TOKEN", v["name"]) and "value" in v for v in container["env"]):
        yield "a secret in the file"


def test_manifests() -> None:
    done = validate(*MANIFESTS)
    assert done.returncode == 0, done.stdout
    there = objects()
    assert len(there) == (done.stdout + done.stderr).count(" passed ")
    namespace = KUSTOMIZATION["namespace"]
    assert ("Namespace", namespace) in there
    assert {t["metadata"].get("namespace", namespace) for t in there.values()} == {namespace}
    assert "Secret" not in {kind for kind, _ in there}
    job, cron = job_and_cronjob()
    assert job["template"] == cron["template"]
    assert job["podFailurePolicy"] == cron["podFailurePolicy"]
    assert job["ttlSecondsAfterFinished"] > 0
    assert list(pod_faults(job, there)) == list(pod_faults(cron, there)) == []
    others = {p.name for p in (KUBERNETES).iterdir()} - {m.name for m in MANIFESTS}
    assert others == {"kustomization.yaml"}
    (image,) = KUSTOMIZATION["images"]
    assert (image["name"], image["newTag"]) == ("knnlm-store", VERSION)


POD_FAULTS: dict[str, Fault] = {
    "as root": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "seccomp": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "token of the cluster": lambda pod: pod.pop("automountServiceAccountToken"),
    "rights": lambda pod: pod["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
    "no resources": lambda pod: pod["containers"][0]["resources"]["requests"].pop("memory"),
    "no limit": lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"),
    "this version": lambda pod: pod["containers"][0].update(image="knnlm-store:latest"),
    "mounts differ": lambda pod: pod["volumes"].pop(),
    "no claim": lambda pod: pod["volumes"][0]["persistentVolumeClaim"].update(claimName="other"),
    "a secret": lambda pod: pod["containers"][0]["env"].append({"name": "KEY", "value": "abc"}),
}


@pytest.mark.parametrize("words", POD_FAULTS)
def test_a_fault_in_a_pod_is_found(words: str) -> None:
    job = copy.deepcopy(job_and_cronjob()[0])
    POD_FAULTS[words](job["template"]["spec"])
    (fault,) = pod_faults(job, objects())
    assert words in fault


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("backoffLimit: 6", "backofLimit: 6"),
        ("backoffLimit: 6", "backoffLimit: six"),
        ("containers:", "container:"),
        ("readOnly: true", "readonly: true"),
    ],
)
def test_a_wrong_field_of_a_job_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    text = (KUBERNETES / "ingest-job.yaml").read_text()
    assert right in text
    (tmp_path / "job.yaml").write_text(text.replace(right, wrong, 1))
    assert validate(tmp_path / "job.yaml").returncode != 0


# -- the image -------------------------------------------------------------------------------------

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", "", DOCKERFILE)  # a line each
COPIED = [words.split() for words in re.findall(r"^COPY (.*)$", STEPS, flags=re.MULTILINE)]


def test_image() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", STEPS, flags=re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    (user,) = re.findall(r"^USER (\d+):(\d+)$", STEPS, flags=re.MULTILINE)
    context = job_and_cronjob()[0]["template"]["spec"]["securityContext"]
    assert user == (str(context["runAsUser"]), str(context["fsGroup"]))
    assert 'ENTRYPOINT ["knnlm-store"]' in STEPS.splitlines()
    assert f"--tag knnlm-store:{VERSION} ." in DOCKERFILE
    assert re.search(r"^RUN pip install --constraint constraints-dev.txt '\.\[all\]'", STEPS, re.M)
    assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|PASSWORD)", STEPS, flags=re.MULTILINE)


def test_the_image_gets_all_that_the_package_needs(tmp_path: Path) -> None:
    """A wheel built from what is copied holds the packages that one of the checkout holds."""
    context = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
               if line.startswith("!")]  # fmt: skip
    sources = [source for *many, _ in COPIED for source in many]
    assert sorted(sources) == sorted(context)
    for source in sources:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, tmp_path / source, ignore=ignored)
        else:
            shutil.copy(ROOT / source, tmp_path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        p.relative_to(ROOT) for d in ("knnlm_store", "adapters") for p in (ROOT / d).rglob("*.py")
    }
    assert {str(file).removeprefix("adapters/") for file in files} <= names
