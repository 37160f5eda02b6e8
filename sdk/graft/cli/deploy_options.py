"""The options of `graft bases deploy`, and the plan that they mean together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.errors import GraftError, Reason
from graft.kubernetes import base_plan

Base = Annotated[str, typer.Argument(metavar="BASE", help="Its id in the registry.")]
Render = Annotated[
    Path | None,
    typer.Option("--render", "-o", help="Write the manifests there, - for here; apply nothing."),
]
ModelClaim = Annotated[
    str, typer.Option(help="PersistentVolumeClaim that holds the model's folder.")
]
ModelPath = Annotated[
    str, typer.Option(help="Its folder in the claim; without a claim, in the image.")
]
Revision = Annotated[
    int, typer.Option(min=0, help="Version of the base that pods fetch from the registry.")
]
ModelSize = Annotated[str, typer.Option(help="Room for a fetched revision.")]
ModelStorageClass = Annotated[
    str, typer.Option(help="Its storage class; without, the node's own disk.")
]
Replicas = Annotated[int, typer.Option(min=0, help="How many; with --scale, how many at least.")]
Scale = Annotated[base_plan.Scaling, typer.Option(help="Who scales.")]
MaxReplicas = Annotated[int, typer.Option(min=1, help="At most so many.")]
QueueAge = Annotated[float, typer.Option(help="Scale out while requests wait longer, in seconds.")]
InFlightTokens = Annotated[
    int, typer.Option(help="Scale out while a replica has more; what its KV cache holds.")
]
Prometheus = Annotated[str, typer.Option(help="URL of Prometheus, for KEDA.")]
WakeQuery = Annotated[
    str, typer.Option(help="PromQL above 0 when a base without replicas is asked for.")
]
Gpus = Annotated[int, typer.Option(min=0, help="Of each replica; 0 for the CPU.")]
GpuResource = Annotated[str, typer.Option(help="What they are called.")]
Cpu = Annotated[str, typer.Option(help="Of each replica.")]
Memory = Annotated[str, typer.Option(help="Of each replica.")]
SharedMemory = Annotated[str, typer.Option(help="/dev/shm, with GPUs.")]
NodeSelector = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE of its nodes; may be repeated.")
]
RuntimeClass = Annotated[str, typer.Option(help="For example nvidia.")]
Cache = Annotated[base_plan.Cache, typer.Option(help="Where fetched adapters are kept.")]
CacheClaim = Annotated[str, typer.Option(help="With --cache claim, its name.")]
CacheNodePath = Annotated[str, typer.Option(help="With --cache node, the folder on each node.")]
CacheSize = Annotated[str, typer.Option(help="At most so much of them.")]
Image = Annotated[str, typer.Option(help="Of inference; by default Graft's own.")]
PullSecret = Annotated[str, typer.Option(help="Secret for the image.")]
EnvSecret = Annotated[str, typer.Option(help="Secret with further variables.")]
TlsSecret = Annotated[
    str, typer.Option(help="Secret with ca.crt, tls.crt and tls.key: TLS on both sides.")
]
TlsIssuer = Annotated[
    str, typer.Option(help="cert-manager's Issuer that makes one instead: graft-ca.")
]
AttestationSecret = Annotated[
    str, typer.Option(help="Secret with service.key, which signs what is attested of answers.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="max_adapters=64 and so on, of GRAFT_INFERENCE_*; repeatable."),
]
RegistryInCluster = Annotated[str, typer.Option(help="The registry as pods reach it.")]
PriorityClass = Annotated[str, typer.Option(help="Of its pods; '' for none.")]
Drain = Annotated[int, typer.Option(min=1, help="Seconds that requests may go on.")]
Start = Annotated[int, typer.Option(min=10, help="Seconds that a start may take.")]
KubeNamespace = Annotated[str, typer.Option(help="Kubernetes' namespace.")]
Kubeconfig = Annotated[Path | None, typer.Option(help="By default $KUBECONFIG.")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig.")]
Force = Annotated[bool, typer.Option(help="Take over what others manage.")]
DryRun = Annotated[bool, typer.Option(help="Let the cluster check it, change nothing.")]
Check = Annotated[bool, typer.Option(help="Ask the registry before it is applied.")]
Wait = Annotated[bool, typer.Option(help="Until all replicas are new and ready.")]
Timeout = Annotated[float, typer.Option(help="With --wait, seconds.")]


def planned(namespace: str, given: Mapping[str, Any]) -> base_plan.BasePlan:
    """What is to be deployed.

    Args:
        given: the command's parameters by name.

    Raises:
        GraftError: INVALID_REQUEST, INVALID_NAME; of BasePlan.
    """
    return base_plan.BasePlan(
        base=given["base"],
        weights=base_plan.Weights(
            given["model_path"],
            given["model_claim"],
            given["revision"],
            given["model_size"],
            given["model_storage_class"],
        ),
        namespace=namespace,
        kube_namespace=given["kube_namespace"],
        registry=given["registry_in_cluster"],
        adapters=base_plan.Adapters(
            base_plan.Cache(given["cache"]),
            given["cache_claim"],
            given["cache_node_path"],
            given["cache_size"],
        ),
        hardware=_hardware(given),
        replicas=_replicas(given),
        image=given["image"],
        settings=_pairs(given["setting"]),
        env_secret=given["env_secret"],
        pull_secret=given["pull_secret"],
        tls_secret=given["tls_secret"],
        tls_issuer=given["tls_issuer"],
        attestation_secret=given["attestation_secret"],
        priority_class=given["priority_class"],
        drain_s=given["drain"],
        start_s=given["start"],
    )


def _hardware(given: Mapping[str, Any]) -> base_plan.Hardware:
    return base_plan.Hardware(
        given["cpu"],
        given["memory"],
        given["gpus"],
        given["gpu_resource"],
        given["shared_memory"],
        _pairs(given["node_selector"]),
        given["runtime_class"],
    )


def _replicas(given: Mapping[str, Any]) -> base_plan.Replicas:
    return base_plan.Replicas(
        base_plan.Scaling(given["scale"]),
        given["replicas"],
        given["max_replicas"],
        given["queue_age"],
        given["in_flight_tokens"],
        given["prometheus"],
        given["wake_query"],
    )


def _pairs(texts: Iterable[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise GraftError(
                Reason.INVALID_REQUEST, f"{text!r} is not KEY=VALUE", next_step="Write KEY=VALUE."
            )
        found[name] = value
    return found
