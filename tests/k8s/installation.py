"""An overlay applied into a namespace of its own, ways into it, and its end: all by kubectl.

What it made goes when the block ends, also after a failure or Ctrl-C. A namespace that was there before is
never touched, nor are priority classes that were there before.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

ROOT = Path(__file__).parents[2]
IMAGES = ("registry", "trainer", "worker", "inference")
LABEL = "graft.dev/test"
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")
_DELETE_S = 300


class ClusterError(Exception):
    """kubectl refused, or something did not become ready; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """From GRAFT_TEST_K8S_*: where to install what.

    Attributes:
        kubectl: the program.
        context: of KUBECONFIG; "" for its current one.
        namespace: is made, and removed at the end.
        images: where the four images are, HOST/PATH; "" as the overlay says.
        tag: of the images; "" as the overlay says.
        overlay: a folder below deploy/k8s/overlays.
        timeout_s: for everything to be ready, and for each job.
        keep: leave it there at the end, to look at it.
    """

    kubectl: str = "kubectl"
    context: str = ""
    namespace: str = ""
    images: str = ""
    tag: str = ""
    overlay: str = "dev"
    timeout_s: float = 900.0
    keep: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads the variables.

        Raises:
            ClusterError: without KUBECONFIG or kubectl, or for a variable that makes no sense.
        """

        def said(name: str, default: str = "") -> str:
            return environment.get(f"GRAFT_TEST_K8S_{name}", default)

        if not environment.get("KUBECONFIG"):
            raise ClusterError(
                "Name a cluster: KUBECONFIG=~/.kube/config make test-k8s. The test makes a namespace "
                "of its own there, and removes it."
            )
        kubectl = shutil.which(said("KUBECTL", "kubectl"))
        if kubectl is None:
            raise ClusterError(
                "kubectl is not on the PATH: install it, or name it in GRAFT_TEST_K8S_KUBECTL."
            )
        overlay = said("OVERLAY", "dev")
        if not (ROOT / "deploy/k8s/overlays" / overlay / "kustomization.yaml").is_file():
            raise ClusterError(
                f"GRAFT_TEST_K8S_OVERLAY={overlay} is no folder of deploy/k8s/overlays."
            )
        return cls(
            kubectl,
            said("CONTEXT"),
            said("NAMESPACE") or f"graft-test-{secrets.token_hex(3)}",
            said("IMAGES").rstrip("/"),
            said("TAG"),
            overlay,
            float(said("TIMEOUT_S", "900")),
            said("KEEP") not in ("", "0"),
        )


@dataclass(slots=True)
class Installation:
    """What the test applied. Use as a context manager.

    Args:
        settings: see Settings.
    """

    settings: Settings
    _ours: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        if self._is_there("namespace", self.settings.namespace):
            raise ClusterError(
                f"The namespace {self.settings.namespace} is there already, and this test would remove it. "
                "Name another one in GRAFT_TEST_K8S_NAMESPACE, or none."
            )
        try:
            self._apply()
            self._wait()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def kubectl(self, *arguments: str, given: str | None = None, timeout_s: float = 60) -> str:
        """Runs kubectl in the namespace and answers what it says.

        Raises:
            ClusterError: with what it said instead.
        """
        done = subprocess.run(
            [*self._command(), *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def forwarded(self, service: str, port: int) -> Iterator[str]:
        """An address on this machine that leads to a Service."""
        process = subprocess.Popen(
            [*self._command(), "port-forward", f"service/{service}", f":{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = _FORWARDING.match(line)
            if found is None:
                raise ClusterError(f"There is no way to the service {service}: {line.strip()}")
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()

    @contextmanager
    def addresses(self) -> Iterator[tuple[str, str, str]]:
        """Of registry, trainer and inference."""
        endpoint = self._endpoint()
        with ExitStack() as stack:
            registry, trainer, inference = (
                stack.enter_context(self.forwarded(service, port))
                for service, port in (
                    ("graft-registry", 7431),
                    ("graft-trainer", 7432),
                    (endpoint, 7433),
                )
            )
            yield registry, trainer, inference

    def rendered(self) -> list[dict[str, Any]]:
        """The overlay's objects, in the namespace and with the images of the settings."""
        build = ROOT / "build"
        build.mkdir(exist_ok=True)
        # Below the repository: kustomize takes only relative paths.
        with tempfile.TemporaryDirectory(prefix="test-k8s-", dir=build) as folder:
            self._write_overlay(Path(folder))
            text = self.kubectl("kustomize", folder)
        return [one for one in yaml.safe_load_all(text) if one]

    def _write_overlay(self, folder: Path) -> None:
        images = [
            {
                "name": f"ghcr.io/graft-dev/{image}",
                **({"newName": f"{self.settings.images}/{image}"} if self.settings.images else {}),
                **({"newTag": self.settings.tag} if self.settings.tag else {}),
            }
            for image in IMAGES
        ]
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": self.settings.namespace,
            "resources": [f"../../deploy/k8s/overlays/{self.settings.overlay}"],
            "labels": [{"pairs": {LABEL: "first-path"}}],
            # The workers' image is a variable of the trainer.
            "configurations": ["images.yaml"],
            "images": [one for one in images if len(one) > 1],
        }
        shutil.copy(ROOT / "deploy/k8s/base/images.yaml", folder)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))

    def _command(self) -> Sequence[str]:
        context = [f"--context={self.settings.context}"] if self.settings.context else []
        return [self.settings.kubectl, *context, f"--namespace={self.settings.namespace}"]

    def _is_there(self, kind: str, name: str) -> bool:
        found = self.kubectl("get", kind, name, "--ignore-not-found", "--output=name")
        return bool(found.strip())

    def _apply(self) -> None:
        objects = self.rendered()
        shared = [one for one in objects if one["kind"] == "PriorityClass"]
        there = {
            one["metadata"]["name"]
            for one in shared
            if self._is_there("priorityclass", one["metadata"]["name"])
        }
        self._ours = [("namespace", self.settings.namespace)]
        # Of an installation that others use: as it is, and not ours to change or remove.
        mine = [
            one
            for one in objects
            if one["kind"] != "PriorityClass" or one["metadata"]["name"] not in there
        ]
        self._ours += [
            ("priorityclass", one["metadata"]["name"])
            for one in mine
            if one["kind"] == "PriorityClass"
        ]
        self.kubectl("apply", "--filename=-", given=yaml.safe_dump_all(mine), timeout_s=120)

    def _wait(self) -> None:
        until_s = time.monotonic() + self.settings.timeout_s
        for workload in self._workloads():
            left_s = max(1.0, until_s - time.monotonic())
            try:
                self.kubectl(
                    "rollout", "status", workload, f"--timeout={left_s:.0f}s", timeout_s=left_s + 30
                )
            except (ClusterError, subprocess.TimeoutExpired) as error:
                raise ClusterError(
                    f"{workload} is not ready: {error}\n{self.situation()}"
                ) from None

    def _workloads(self) -> list[str]:
        found = self.kubectl("get", "deployments,statefulsets", "--output=name").split()
        return sorted(found, key=lambda name: "inference" in name)

    def _endpoint(self) -> str:
        listed = json.loads(self.kubectl("get", "services", "--output=json"))["items"]
        names = [str(one["metadata"]["name"]) for one in listed]
        return next(
            name
            for name in sorted(names)
            if name.startswith("graft-inference-") and not name.endswith("-headless")
        )

    def situation(self) -> str:
        """What the namespace looks like, for a failed test: pods, why they wait, last events, last words."""
        parts = []
        for title, arguments in (
            ("pods", ("get", "pods", "--output=wide")),
            ("jobs", ("get", "jobs")),
            ("events", ("get", "events", "--sort-by=.lastTimestamp")),
            ("registry", ("logs", "deployment/graft-registry", "--tail=20", "--all-containers")),
            ("trainer", ("logs", "statefulset/graft-trainer", "--tail=20")),
        ):
            try:
                said = self.kubectl(*arguments)
            except (ClusterError, subprocess.TimeoutExpired) as error:
                said = str(error)
            parts.append(f"--- {title}\n" + "\n".join(said.splitlines()[-30:]))
        return "\n".join(parts)

    def _remove(self) -> None:
        if self.settings.keep:
            print(f"Kept, as you asked: kubectl delete namespace {self.settings.namespace}")
            return
        problems = []
        for kind, name in self._ours:
            try:
                self.kubectl(
                    "delete", kind, name, "--ignore-not-found", f"--timeout={_DELETE_S}s",
                    timeout_s=_DELETE_S + 30,
                )  # fmt: skip
            except (ClusterError, subprocess.TimeoutExpired) as error:
                problems.append(f"{kind} {name}: {error}")
        if problems:
            raise ClusterError(
                "Not everything could be removed; remove it yourself: " + "; ".join(problems)
            )
