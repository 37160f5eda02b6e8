"""What a base is deployed with: one value, checked once, from which base_template.py makes the objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from graft.errors import GraftError, Reason
from graft.names import DEFAULT_NAMESPACE, base_name
from graft.version import VERSION

_PREFIX = "graft-inference-"
# With the prefix and "-headless" it is a Service's name, which has at most 63 letters.
_LONGEST = 63 - len(_PREFIX) - len("-headless")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_DIGEST_LETTERS = 10
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What these would contradict is said by other options.
_OWN = (
    "LISTEN", "METRICS_LISTEN", "NAMESPACE", "BASE", "BASE_NAME", "CACHE_DIR", "DATA_DIR",
    "REGISTRY_ADDRESS", "DRAIN_TIMEOUT_S", "REQUIRE_PRODUCTION", "TENSOR_PARALLEL_SIZE",
    "HEALTH_LISTEN", "ATTESTATION_KEY", "TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA",
)  # fmt: skip


class Scaling(StrEnum):
    """Who decides how many replicas there are."""

    NONE = "none"
    HPA = "hpa"
    KEDA = "keda"


class Cache(StrEnum):
    """Where a pod keeps the adapters that it fetched.

    pod: its own disk, gone with it. claim: a volume that pods share by digest. node: a folder of the
    node that its pods share by digest, by way of a volume, since the restricted profile has no hostPath.
    """

    POD = "pod"
    CLAIM = "claim"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the base's files come from: a claim, the image itself, or the registry.

    Args:
        path: of the model's folder: in the claim, or in the image.
        claim: a PersistentVolumeClaim that holds it; it is only read.
        revision: a version of the base, which each pod fetches from the registry before it starts.
        volume_size: room for a fetched revision.
        storage_class: of the volume for it, which lives as long as the pod; "" for the node's own disk.
    """

    path: str = ""
    claim: str = ""
    revision: int = 0
    volume_size: str = "64Gi"
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class Adapters:
    """The cache of fetched adapters.

    Args:
        cache: see Cache.
        claim: its name, where it is one that exists.
        node_path: folder of the node.
        size: what is kept at most.
    """

    cache: Cache = Cache.POD
    claim: str = ""
    node_path: str = "/var/lib/graft-adapters"
    size: str = "16Gi"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica asks for.

    Args:
        cpu, memory: Kubernetes' quantities. Memory is a limit too.
        gpus: of one replica, which computes on all of them together; 0 for the CPU.
        gpu_resource: what the device plugin calls them.
        shared_memory: of /dev/shm, by which the processes of several GPUs talk; counts as memory.
        node_selector: labels of the nodes.
        runtime_class: for example "nvidia", where the cluster needs it named.
    """

    cpu: str = "2"
    memory: str = "8Gi"
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shared_memory: str = "8Gi"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many there are.

    Args:
        scaling: by whom it is decided; with none there are always `least`.
        least: 0 with KEDA alone: then there is no replica while nobody asks.
        most: bound of scaling.
        queue_age_s: more are wanted while requests wait longer than that.
        in_flight_tokens: and while a replica has more of them: what its KV cache holds, and somewhat less.
        prometheus: its address, for KEDA.
        wake_query: PromQL that is above 0 when somebody asks for a base that has no replica.
        idle_after_s: without requests for so long there may be none.
    """

    scaling: Scaling = Scaling.NONE
    least: int = 2
    most: int = 8
    queue_age_s: float = 1.0
    in_flight_tokens: int = 32_768
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    wake_query: str = ""
    idle_after_s: int = 900


@dataclass(frozen=True, slots=True)
class BasePlan:
    """A base and how it is served.

    Args:
        base: its id in the registry.
        namespace: Graft's namespace, where base and adapters are.
        kube_namespace: Kubernetes' namespace.
        registry: "host:port" of the registry as pods reach it.
        image: of inference; "" for Graft's own of this version, for CPUs or for GPUs.
        settings: more settings of the service, as GRAFT_INFERENCE_* are named, in lower case.
        env_secret: a Secret whose entries become environment variables; "" for none.
        pull_secret: a Secret for the image; "" for none.
        tls_secret: a Secret with ca.crt, tls.crt and tls.key: TLS to and from the endpoint, for clients with
            a certificate of that CA; "" for plaintext.
        tls_issuer: cert-manager's Issuer that makes one, instead.
        attestation_secret: a Secret with service.key, which signs what is attested of each answer; "" for none.
        priority_class: "" for the cluster's default.
        drain_s: how long requests may go on when a replica ends.
        start_s: how long a replica may take until its engine runs.
        run_as: user and group; not 0.
    """

    base: str
    weights: Weights
    namespace: str = DEFAULT_NAMESPACE
    kube_namespace: str = "graft"
    registry: str = "graft-registry:7431"
    image: str = ""
    adapters: Adapters = Adapters()
    hardware: Hardware = Hardware()
    replicas: Replicas = Replicas()
    settings: Mapping[str, str] = field(default_factory=dict)
    env_secret: str = ""
    pull_secret: str = ""
    tls_secret: str = ""
    tls_issuer: str = ""
    attestation_secret: str = ""
    priority_class: str = "graft-serving"
    drain_s: int = 120
    start_s: int = 1800
    run_as: int = 10001

    def __post_init__(self) -> None:
        """Raises INVALID_REQUEST, INVALID_NAME, naming what cannot be."""
        base_name(self.namespace, self.base)
        _check_weights(self.weights)
        _check_replicas(self.replicas)
        _check_adapters(self.adapters)
        sizes = {
            "cpu": self.hardware.cpu,
            "memory": self.hardware.memory,
            "shared_memory": self.hardware.shared_memory,
            "the cache's size": self.adapters.size,
            "the weights' volume_size": self.weights.volume_size,
        }
        for what, quantity in sizes.items():
            if _QUANTITY.fullmatch(quantity) is None:
                raise _invalid(
                    f"{what} is {quantity!r}", "Write a quantity such as 500m, 8 or 16Gi."
                )
        if self.hardware.gpus < 0 or self.drain_s < 1 or self.start_s < 10 or self.run_as < 1:
            raise _invalid(
                f"gpus={self.hardware.gpus}, drain_s={self.drain_s}, start_s={self.start_s}, "
                f"run_as={self.run_as}: at least 0, 1, 10 and 1 are wanted",
                "Name others; a pod never runs as root.",
            )
        if self.tls_secret and self.tls_issuer:
            raise _invalid(
                f"the certificate is in {self.tls_secret}, and {self.tls_issuer} shall make one",
                "Name a Secret or an Issuer.",
            )
        for name in self.settings:
            if name.upper() in _OWN or _VARIABLE.fullmatch(name) is None:
                raise _invalid(
                    f"the setting {name!r} cannot be given",
                    f"These follow from other options: {', '.join(_OWN).lower()}.",
                )

    @property
    def image_name(self) -> str:
        """The image that is run."""
        own = f"ghcr.io/graft-dev/inference:{VERSION}{'-gpu' if self.hardware.gpus else ''}"
        return self.image or own

    @property
    def certificate_secret(self) -> str:
        """The Secret with the endpoint's certificate; "" for plaintext."""
        return f"{self.name}-tls" if self.tls_issuer else self.tls_secret

    @property
    def name(self) -> str:
        """Of the Deployment and all that belongs to it; no two bases share one."""
        plain = self.namespace == DEFAULT_NAMESPACE and len(self.base) <= _LONGEST
        if plain and _LABEL.fullmatch(self.base):
            return f"{_PREFIX}{self.base}"
        digest = hashlib.sha256(base_name(self.namespace, self.base).encode()).hexdigest()
        readable = re.sub(r"[^a-z0-9]+", "-", self.base)[: _LONGEST - _DIGEST_LETTERS - 1]
        return f"{_PREFIX}{readable.strip('-')}-{digest[:_DIGEST_LETTERS]}"


def size_bytes(quantity: str) -> int:
    """Bytes of a quantity such as 16Gi, which was checked before."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None
    number, unit = float(match[1]), match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    power = " KMGTPE".index(unit[0].upper()) if unit and unit != "m" else 0
    return int(number * base**power)


def _check_weights(weights: Weights) -> None:
    if weights.revision < 0 or (weights.revision and (weights.path or weights.claim)):
        raise _invalid(
            "the weights have a revision, and a path or a claim as well",
            "Fetch a revision from the registry, or name where the files are already.",
        )
    if not weights.revision and not weights.path and not weights.claim:
        raise _invalid(
            "nothing says where the base's weights are",
            "Name a claim (--model-claim), a folder of the image (--model-path), or a version of the "
            "base in the registry (--revision).",
        )
    if ".." in weights.path.split("/") or (not weights.claim and weights.path[:1] not in ("", "/")):
        raise _invalid(
            f"the path {weights.path!r} cannot be used",
            "Within a claim write it without '..', within the image from the root.",
        )


def _check_replicas(replicas: Replicas) -> None:
    scaled = replicas.scaling is not Scaling.NONE
    if replicas.least < 0 or (scaled and not max(1, replicas.least) <= replicas.most):
        raise _invalid(
            f"there cannot be {replicas.least} to {replicas.most} replicas",
            "Let the least be 0 or more and the most at least that, and 1.",
        )
    if scaled and (replicas.queue_age_s <= 0 or replicas.in_flight_tokens <= 0):
        raise _invalid(
            f"queue_age_s={replicas.queue_age_s} and in_flight_tokens={replicas.in_flight_tokens} "
            "cannot be scaled by",
            "Write figures above 0.",
        )
    if scaled and replicas.least == 0:
        _check_idle(replicas)


def _check_idle(replicas: Replicas) -> None:
    if replicas.scaling is not Scaling.KEDA:
        raise _invalid(
            "a HorizontalPodAutoscaler cannot scale to zero", "Use KEDA, or keep one replica."
        )
    if not replicas.wake_query:
        raise _invalid(
            "with no replica there is nobody to say that requests wait",
            "Name what does: --wake-query with PromQL on a gateway's metrics that is above 0 then.",
        )


def _check_adapters(adapters: Adapters) -> None:
    if (adapters.cache is Cache.CLAIM) != bool(adapters.claim):
        raise _invalid(
            f"the cache is {adapters.cache.value!r} and its claim {adapters.claim!r}",
            "Name a claim with --cache claim, and with no other.",
        )
    if adapters.cache is Cache.NODE and not adapters.node_path.startswith("/"):
        raise _invalid(
            f"the node's folder {adapters.node_path!r} is not absolute", "Begin it with '/'."
        )


def _invalid(message: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST, f"The base cannot be deployed so: {message}", next_step=next_step
    )
