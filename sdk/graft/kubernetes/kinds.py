"""The kinds of objects that Graft has to do with in a cluster, and where an API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object: where the API server has it.

    Args:
        api_version: "v1", or "{group}/{version}".
        name: as manifests have it, for example "ConfigMap".
        plural: as paths have it.
        namespaced: False for what is the whole cluster's.
    """

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def root(self) -> str:
        """The path of its API group's version."""
        return f"/api{'' if self.api_version == 'v1' else 's'}/{self.api_version}"

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The path of all of them, of one, or of a part of one."""
        within = ("namespaces", namespace) if self.namespaced else ()
        parts = [*within, self.plural, name, subresource]
        return "/".join([self.root, *(quote(part, safe="") for part in parts if part)])


JOBS = Kind("batch/v1", "Job", "jobs")
JOBSETS = Kind("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets")
TRAIN_JOBS = Kind("trainer.kubeflow.org/v1alpha1", "TrainJob", "trainjobs")
RUNTIMES = Kind("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", "trainingruntimes")
WORKLOADS = Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads")
PODS = Kind("v1", "Pod", "pods")
EVENTS = Kind("v1", "Event", "events")
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps")
SECRETS = Kind("v1", "Secret", "secrets")
SERVICES = Kind("v1", "Service", "services")
CLAIMS = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
_OTHERS = (
    Kind("batch/v1", "CronJob", "cronjobs"),
    Kind("v1", "PersistentVolume", "persistentvolumes", namespaced=False),
    Kind("apps/v1", "Deployment", "deployments"),
    Kind("apps/v1", "ReplicaSet", "replicasets"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects"),
    Kind("cert-manager.io/v1", "Certificate", "certificates"),
)
KINDS: Mapping[str, Kind] = {
    one.name: one
    for one in (
        *(JOBS, JOBSETS, TRAIN_JOBS, RUNTIMES, WORKLOADS, PODS, EVENTS),
        *(CONFIG_MAPS, SECRETS, SERVICES, CLAIMS, *_OTHERS),
    )
}


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of a manifest, in the version that it is written in."""
    return replace(KINDS[manifest["kind"]], api_version=manifest["apiVersion"])
