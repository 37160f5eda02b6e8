"""What `kubectl apply -k` would apply, for every overlay and what can be added to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "deploy" / "k8s"
Object = dict[str, Any]


@dataclass(frozen=True)
class Installation:
    """An overlay with components, as in an operator's own kustomization."""

    overlay: str
    components: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For test ids and file names."""
        return "-".join((self.overlay, *self.components))


# What is documented to go together.
INSTALLATIONS = (
    Installation("dev"),
    Installation("dev", ("persistent", "attestation")),
    Installation("dev", ("kueue",)),
    Installation("dev", ("monitoring",)),
    Installation("dev", ("tls",)),
    Installation("gpu"),
    Installation("gpu", ("hpa",)),
    Installation("gpu", ("cert-manager",)),
    Installation("gpu", ("gateway", "gateway-openai")),
    Installation("gpu", ("gateway", "gateway-http")),
    Installation("gpu", ("kueue", "keda", "monitoring", "gateway")),
)


def render(installation: Installation, more: Mapping[str, Any] | None = None) -> list[Object]:
    """All objects of an installation, in the order of kustomize.

    Args:
        more: fields of the operator's kustomization, for example patches.

    Raises:
        subprocess.CalledProcessError: kustomize refuses it; its words are in stderr.
    """
    with tempfile.TemporaryDirectory(prefix="graft-kustomize-") as folder:
        own = {
            "resources": [_from(folder, K8S / "overlays" / installation.overlay)],
            "components": [
                _from(folder, K8S / "components" / one) for one in installation.components
            ],
            "images": [
                {"name": name, "newName": new.rpartition(":")[0], "newTag": new.rpartition(":")[2]}
                for name, new in installation.images.items()
            ],
            **(more or {}),
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(own))
        done = subprocess.run(
            ["kubectl", "kustomize", folder], capture_output=True, text=True, check=True
        )
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def can_render() -> bool:
    """Whether kubectl is here."""
    return shutil.which("kubectl") is not None


def _from(folder: str, path: Path) -> str:
    # Kustomize wants relative paths.
    return os.path.relpath(path.resolve(), Path(folder).resolve())


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Each pod template: its owner as "Kind/name", its metadata and its spec."""
    for one in objects:
        match one["kind"]:
            case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                template = one["spec"]["template"]
            case "CronJob":
                template = one["spec"]["jobTemplate"]["spec"]["template"]
            case _:
                continue
        yield f"{one['kind']}/{one['metadata']['name']}", template["metadata"], template["spec"]


def containers(spec: Object) -> list[Object]:
    """All containers of a pod, those that run before the others too."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind by name."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects all."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or ():
        assert each["operator"] == "In", "only In is used here"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True
