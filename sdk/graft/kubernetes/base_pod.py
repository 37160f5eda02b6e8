"""The pod of a replica: restricted as Pod Security wants it, ready by what it holds, with time to drain."""

from __future__ import annotations

from typing import Any

from graft.kubernetes.base_plan import BasePlan, Cache, Weights
from graft.kubernetes.pod_attestation import (
    ATTESTATION_KEY_FILE,
    ATTESTATION_MOUNT,
    attestation_volume,
)
from graft.kubernetes.pod_tls import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    TLS_MOUNT,
    tls_variables,
    tls_volume,
)
from graft.names import base_name

GRPC_PORT, HTTP_PORT, METRICS_PORT, HEALTH_PORT = 7433, 7434, 9433, 8433
# Until everybody has heard that the pod is going, it answers as ever.
_GOODBYE_S = 5
# For the engine's own end, after the last request.
_ENGINE_END_S = 30
_DATA, _HOME, _CACHE, _MODEL = (
    "/var/lib/graft",
    "/home/graft",
    "/var/cache/graft/adapters",
    "/models/base",
)
_PROBE_S = 10
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
CACHE_VOLUME = "adapters"


def model_folder(weights: Weights) -> str:
    """Where the service finds the base."""
    if weights.revision:
        return f"{_MODEL}/{weights.revision}"
    if weights.claim:
        return f"{_MODEL}/{weights.path.strip('/')}".rstrip("/")
    return weights.path


def settings_of(plan: BasePlan, cache_bytes: int) -> dict[str, str]:
    """The service's variables."""
    told = {
        "LISTEN": f"0.0.0.0:{GRPC_PORT}",
        "HTTP_LISTEN": f"0.0.0.0:{HTTP_PORT}",
        "METRICS_LISTEN": f"0.0.0.0:{METRICS_PORT}",
        "DATA_DIR": _DATA,
        "CACHE_DIR": _CACHE,
        "CACHE_MAX_BYTES": str(cache_bytes),
        "REGISTRY_ADDRESS": plan.registry,
        "NAMESPACE": plan.namespace,
        "BASE": model_folder(plan.weights),
        "BASE_NAME": plan.base,
        "REQUIRE_PRODUCTION": "true",
        # What is served is what was deployed, unless --set base_switch says otherwise.
        "BASE_SWITCH": "off",
        "DRAIN_TIMEOUT_S": str(plan.drain_s),
        # So that clients find replicas that were added.
        "MAX_CONNECTION_AGE_S": "300",
    }
    if plan.certificate_secret:
        told["TLS_CERTIFICATE"], told["TLS_KEY"] = CERTIFICATE_FILE, KEY_FILE
        told["TLS_CLIENT_CA"] = CA_FILE
        # Probes speak no TLS.
        told["HEALTH_LISTEN"] = f"0.0.0.0:{HEALTH_PORT}"
    if plan.attestation_secret:
        told["ATTESTATION_KEY"] = ATTESTATION_KEY_FILE
    if plan.hardware.gpus > 1:
        told["TENSOR_PARALLEL_SIZE"] = str(plan.hardware.gpus)
    given = {name.upper(): value for name, value in plan.settings.items()}
    return {f"GRAFT_INFERENCE_{name}": value for name, value in {**told, **given}.items()}


def pod_spec(plan: BasePlan, config: str, selector: dict[str, str]) -> dict[str, Any]:
    """The pod.

    Args:
        config: name of the ConfigMap with the settings.
        selector: labels that all replicas of the base have.
    """
    spec: dict[str, Any] = {
        "serviceAccountName": "graft-inference",
        # It asks nothing of Kubernetes.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GOODBYE_S + plan.drain_s + _ENGINE_END_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": plan.run_as,
            "runAsGroup": plan.run_as,
            "fsGroup": plan.run_as,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            _spread(key, selector)
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [_container(plan, config)],
        "volumes": _volumes(plan),
    }
    if plan.weights.revision:
        spec["initContainers"] = [_fetching(plan, config)]
    if plan.priority_class:
        spec["priorityClassName"] = plan.priority_class
    if plan.pull_secret:
        spec["imagePullSecrets"] = [{"name": plan.pull_secret}]
    return spec | _placement(plan)


def _placement(plan: BasePlan) -> dict[str, Any]:
    hardware, found = plan.hardware, dict[str, Any]()
    if hardware.node_selector:
        found["nodeSelector"] = dict(hardware.node_selector)
    if hardware.runtime_class:
        found["runtimeClassName"] = hardware.runtime_class
    if hardware.gpus:
        toleration = {"key": hardware.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        found["tolerations"] = [toleration]
    return found


def _spread(key: str, selector: dict[str, str]) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
        # Old and new replicas are spread each by themselves while they are rolled.
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(plan: BasePlan, config: str) -> dict[str, Any]:
    ports = {"grpc": GRPC_PORT, "metrics": METRICS_PORT, "openai": HTTP_PORT}
    if plan.certificate_secret:
        ports["health"] = HEALTH_PORT
    asked = ports.get("health", GRPC_PORT)
    return {
        "name": "inference",
        "image": plan.image_name,
        "env": _env(plan),
        "envFrom": _env_from(plan, config),
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()
        ],
        "startupProbe": _probe(asked, "startup", _PROBE_S, 3, -(-plan.start_s // _PROBE_S)),
        "readinessProbe": _probe(asked, "readiness", 5, 3, 2),
        # Patient: it shares its cores with the engine, and starts a dead engine anew by itself.
        "livenessProbe": _probe(asked, "liveness", _PROBE_S, 10, 6),
        "lifecycle": {"preStop": {"sleep": {"seconds": _GOODBYE_S}}},
        "resources": _resources(plan),
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(plan),
    }


def _fetching(plan: BasePlan, config: str) -> dict[str, Any]:
    """Brings a revision of the base; what is there already stays."""
    revision = {"name": "GRAFT_INFERENCE_BASE_REVISION", "value": str(plan.weights.revision)}
    return {
        "name": "fetch-base",
        "image": plan.image_name,
        "command": ["python", "-m", "services.inference.fetch_base"],
        "env": [*_env(plan), revision],
        "envFrom": _env_from(plan, config),
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "model", "mountPath": _MODEL},
            {"name": "tmp", "mountPath": "/tmp"},
            *([TLS_MOUNT] if plan.certificate_secret else []),
        ],
    }


def _env(plan: BasePlan) -> list[dict[str, Any]]:
    values = {"HOME": _HOME, "GRAFT_HOME": _DATA, "TMPDIR": "/tmp", "PYTHONUNBUFFERED": "1"}
    if plan.certificate_secret:
        values |= tls_variables()
    return [{"name": name, "value": value} for name, value in values.items()]


def _env_from(plan: BasePlan, config: str) -> list[dict[str, Any]]:
    secret = [{"secretRef": {"name": plan.env_secret}}] if plan.env_secret else []
    # The last wins: what follows from the plan is not changed by a Secret.
    return [*secret, {"configMapRef": {"name": config}}]


def _probe(port: int, service: str, period_s: int, timeout_s: int, failures: int) -> dict[str, Any]:
    return {
        "grpc": {"port": port, "service": service},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _resources(plan: BasePlan) -> dict[str, Any]:
    hardware = plan.hardware
    # A CPU limit would stop all streams of a replica for the rest of a period.
    limits = {"memory": hardware.memory}
    if hardware.gpus:
        limits[hardware.gpu_resource] = str(hardware.gpus)
    requests = {"cpu": hardware.cpu, "memory": hardware.memory, "ephemeral-storage": "1Gi"}
    return {"requests": requests, "limits": limits}


def _mounts(plan: BasePlan) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "data", "mountPath": _DATA},
        {"name": "home", "mountPath": _HOME},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": CACHE_VOLUME, "mountPath": _CACHE},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if plan.weights.claim or plan.weights.revision:
        mounts.append({"name": "model", "mountPath": _MODEL, "readOnly": True})
    if plan.certificate_secret:
        mounts.append(TLS_MOUNT)
    if plan.attestation_secret:
        mounts.append(ATTESTATION_MOUNT)
    return mounts


def _volumes(plan: BasePlan) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "data", "emptyDir": {"sizeLimit": "2Gi"}},
        # Compiled kernels.
        {"name": "home", "emptyDir": {"sizeLimit": "8Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": CACHE_VOLUME, **_cache(plan)},
        # The engine's processes talk by it, and a container has 64 MiB by itself.
        {"name": "shared-memory", "emptyDir": _shared_memory(plan)},
    ]
    if plan.weights.claim:
        claim = {"claimName": plan.weights.claim, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    elif plan.weights.revision:
        volumes.append({"name": "model", **_room(plan.weights)})
    if plan.certificate_secret:
        volumes.append(tls_volume(plan.certificate_secret))
    if plan.attestation_secret:
        volumes.append(attestation_volume(plan.attestation_secret))
    return volumes


def _shared_memory(plan: BasePlan) -> dict[str, str]:
    size = plan.hardware.shared_memory if plan.hardware.gpus else "1Gi"
    return {"medium": "Memory", "sizeLimit": size}


def _cache(plan: BasePlan) -> dict[str, Any]:
    if plan.adapters.cache is Cache.POD:
        return {"emptyDir": {"sizeLimit": plan.adapters.size}}
    claim = plan.adapters.claim or cache_claim(plan)
    return {"persistentVolumeClaim": {"claimName": claim}}


def cache_claim(plan: BasePlan) -> str:
    """The claim by which pods reach their node's folder: all bases of a namespace share it."""
    assert plan.adapters.cache is Cache.NODE
    return "graft-node-adapters"


def _room(weights: Weights) -> dict[str, Any]:
    if not weights.storage_class:
        return {"emptyDir": {"sizeLimit": weights.volume_size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": weights.storage_class,
        "resources": {"requests": {"storage": weights.volume_size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def described(plan: BasePlan) -> dict[str, str]:
    """Annotations that say what is served."""
    found = {"graft.dev/base-name": base_name(plan.namespace, plan.base)}
    if plan.weights.revision:
        found["graft.dev/base-revision"] = str(plan.weights.revision)
    return found
