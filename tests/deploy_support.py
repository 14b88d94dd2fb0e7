"""The files in deploy/, and the tools that judge them; no container engine is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS = [KUBERNETES / name for name in KUSTOMIZATION["resources"]]

Model = dict[str, Any]


def tool(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that lies beside the interpreter, with no other environment than this."""
    return subprocess.run(
        [Path(sys.executable).parent / str(command[0]), *map(str, command[1:])],
        env={"PATH": os.environ["PATH"], "HOME": str(DEPLOY / "nowhere"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def objects() -> dict[tuple[str, str], Model]:
    """Kubernetes' objects by kind and name."""
    things = [t for path in MANIFESTS for t in yaml.safe_load_all(path.read_text())]
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in things}


def job_and_cronjob() -> tuple[Model, Model]:
    """The specs of the Job, and of the Jobs that the CronJob makes."""
    there = objects()
    job: Model = there["Job", "knnlm-ingest"]["spec"]
    cron: Model = there["CronJob", "knnlm-reingest"]["spec"]["jobTemplate"]["spec"]
    return job, cron


def blocks(text: str, language: str) -> str:
    """Everything in a page's code blocks of a language."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL))
