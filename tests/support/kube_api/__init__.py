"""A Kubernetes API server of the tests' own: real HTTP, a Job controller and a kubelet whose pods are scripted."""

from tests.support.kube_api.cluster import Cluster, kube_cluster
from tests.support.kube_api.faults import Fault, Faults
from tests.support.kube_api.runs import IdleRun, PodRun, ProcessRun, ScriptedRun

__all__ = [
    "Cluster",
    "Fault",
    "Faults",
    "IdleRun",
    "PodRun",
    "ProcessRun",
    "ScriptedRun",
    "kube_cluster",
]
