"""Kubernetes' objects for one base: pure functions from a plan to plain values. Nothing here talks to a cluster.

A base of its own weights has a Deployment of its own. The same base with another revision, image or
setting is the same Deployment, rolled: no old replica ends before a new one is ready, and a new one is
ready only when it holds what the production aliases name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from graft.kubernetes import base_pod
from graft.kubernetes.base_plan import BasePlan, Cache, Scaling, size_bytes
from graft.kubernetes.base_scaling import scaler
from graft.kubernetes.pod_tls import certificate

BASE_LABEL, NAMESPACE_LABEL = "graft.dev/base", "graft.dev/namespace"
CONFIG_LABEL = "graft.dev/config"
# Of the cache, what the bookkeeping of the file system may take besides the files.
_CACHE_SHARE = 0.9
_HASH_LETTERS = 10


def base_manifests(plan: BasePlan) -> list[dict[str, Any]]:
    """All objects, in the order in which they are applied."""
    config = _config(plan)
    found = [
        *_node_cache(plan),
        *_certificate(plan),
        config,
        _service(plan),
        _headless(plan),
        _deployment(plan, config["metadata"]["name"]),
        _disruption_budget(plan),
    ]
    scaling = scaler(plan, _metadata(plan))
    return [*found, scaling] if scaling is not None else found


def selector(plan: BasePlan) -> dict[str, str]:
    """Labels by which a base's pods are found; they never change."""
    return {
        "app.kubernetes.io/name": "graft-inference",
        BASE_LABEL: plan.base,
        NAMESPACE_LABEL: plan.namespace,
    }


def _labels(plan: BasePlan) -> dict[str, str]:
    return {
        **selector(plan),
        "app.kubernetes.io/component": "inference",
        "app.kubernetes.io/part-of": "graft",
        "app.kubernetes.io/instance": plan.name,
        "app.kubernetes.io/managed-by": "graft",
    }


def _metadata(plan: BasePlan, name: str = "", **labels: str) -> dict[str, Any]:
    return {
        "name": name or plan.name,
        "namespace": plan.kube_namespace,
        "labels": {**_labels(plan), **labels},
    }


def _config(plan: BasePlan) -> dict[str, Any]:
    """Never changed: its name has its content's hash, so that old replicas keep their own settings."""
    data = base_pod.settings_of(plan, int(_CACHE_SHARE * size_bytes(plan.adapters.size)))
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    metadata = _metadata(plan, f"{plan.name}-{digest[:_HASH_LETTERS]}")
    metadata["labels"][CONFIG_LABEL] = digest[:_HASH_LETTERS]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": data,
    }


def _service(plan: BasePlan) -> dict[str, Any]:
    metrics = {"name": "metrics", "port": base_pod.METRICS_PORT, "targetPort": "metrics"}
    openai = {"name": "openai", "port": base_pod.HTTP_PORT, "targetPort": "openai"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(plan),
            "ports": [
                _grpc_port(plan),
                {**metrics, "protocol": "TCP"},
                {**openai, "protocol": "TCP"},
            ],
        },
    }


def _headless(plan: BasePlan) -> dict[str, Any]:
    """An address for each replica that is ready: what clients take in turn, or by adapter."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, f"{plan.name}-headless"),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": selector(plan),
            "ports": [_grpc_port(plan)],
        },
    }


def _certificate(plan: BasePlan) -> list[dict[str, Any]]:
    if not plan.tls_issuer:
        return []
    name, labels = plan.certificate_secret, _labels(plan)
    return [certificate(name, plan.kube_namespace, labels, plan.name, plan.tls_issuer)]


def _grpc_port(plan: BasePlan) -> dict[str, Any]:
    return {
        "name": "grpc",
        "port": base_pod.GRPC_PORT,
        "targetPort": "grpc",
        "protocol": "TCP",
        "appProtocol": "https" if plan.certificate_secret else "kubernetes.io/h2c",
    }


def _deployment(plan: BasePlan, config: str) -> dict[str, Any]:
    metadata = _metadata(plan)
    metadata["annotations"] = base_pod.described(plan)
    spec: dict[str, Any] = {
        "selector": {"matchLabels": selector(plan)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "minReadySeconds": 5,
        "progressDeadlineSeconds": plan.start_s + 600,
        "revisionHistoryLimit": 5,
        "template": {
            "metadata": {"labels": _labels(plan), "annotations": base_pod.described(plan)},
            "spec": base_pod.pod_spec(plan, config, selector(plan)),
        },
    }
    if plan.replicas.scaling is Scaling.NONE:
        # Else whoever scales owns it, and no deployment sets it back.
        spec = {"replicas": plan.replicas.least, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _disruption_budget(plan: BasePlan) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(plan),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(plan)},
            # What is not ready serves nobody, and must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _node_cache(plan: BasePlan) -> list[dict[str, Any]]:
    """A volume that is, on each node, that node's own folder; bound to one claim and to no node."""
    if plan.adapters.cache is not Cache.NODE:
        return []
    claim = base_pod.cache_claim(plan)
    # Nobody looks at the size of such a volume; the service itself keeps to its bound.
    volume, size = f"{plan.kube_namespace}-{claim}", {"storage": "1Gi"}
    labels = {"app.kubernetes.io/part-of": "graft", "app.kubernetes.io/managed-by": "graft"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume, "labels": labels},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"name": claim, "namespace": plan.kube_namespace},
                "hostPath": {"path": plan.adapters.node_path, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": plan.kube_namespace, "labels": labels},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": size},
            },
        },
    ]
