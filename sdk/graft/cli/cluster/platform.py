"""What a cluster is and has, before anything of Graft is in it: version, nodes, GPUs, storage, add-ons."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

from graft.cli.doctor import Finding, Verdict
from graft.kubernetes.api import Api, ApiError, Object

_OLDEST, _NEWEST = (1, 30), (1, 36)
_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")
# What NVIDIA's and the node-feature-discovery's labels say of a node with a card in it.
_HAS_GPU = (
    "nvidia.com/gpu.present",
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "cloud.google.com/gke-accelerator",
    "k8s.amazonaws.com/accelerator",
)
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
# Provisioners of volumes that many nodes may write; the API itself does not say.
_SHARED = re.compile(
    r"nfs|efs\.csi|file\.csi\.azure|filestore|cephfs|longhorn|lustre|glusterfs|beegfs|weka|juicefs|gpfs"
)
# Group: what it is, what it gives, what to do without it.
_ADD_ONS: Mapping[str, tuple[str, str, str]] = {
    "metrics.k8s.io": ("metrics server", "autoscaling on CPU and memory", ""),
    "kueue.x-k8s.io": (
        "Kueue",
        "queues and quotas for training jobs",
        "Without it jobs start as soon as a node has room. Install it (kueue.sigs.k8s.io), then use "
        "the component deploy/k8s/components/kueue.",
    ),
    "jobset.x-k8s.io": (
        "JobSet",
        "jobs of several nodes that fail and restart as one",
        "Without it such jobs are Indexed Jobs. Install it from jobset.sigs.k8s.io if you want more.",
    ),
    "keda.sh": (
        "KEDA",
        "replicas by queue time, and down to none",
        "Without it replicas are scaled by an HPA, never below one. Install it from keda.sh.",
    ),
    "cert-manager.io": (
        "cert-manager",
        "certificates that renew themselves",
        "Without it `graft cluster certificates` makes them. Install it from cert-manager.io, then use the "
        "component deploy/k8s/components/cert-manager.",
    ),
    "gateway.networking.k8s.io": (
        "Gateway API",
        "routes from outside of the cluster",
        "Without it expose the Services as your cluster does. See gateway-api.sigs.k8s.io.",
    ),
    "inference.networking.k8s.io": (
        "Gateway API inference extension",
        "routing by which adapters a replica holds",
        "Without it clients route by themselves. See gateway-api-inference-extension.sigs.k8s.io.",
    ),
    "monitoring.coreos.com": (
        "Prometheus operator",
        "metrics by ServiceMonitor",
        "Without it let your Prometheus scrape the ports named metrics.",
    ),
}  # fmt: skip


async def look_at_platform(cluster: Api, namespace: str) -> AsyncIterator[Finding]:
    """Findings about what the cluster brings along."""
    yield _version(await cluster.get("/version"))
    async for finding in _allowed(_nodes(cluster), "nodes", "cluster-wide: ask its administrator"):
        yield finding
    async for finding in _allowed(_storage(cluster), "storage classes", "cluster-wide"):
        yield finding
    groups = await _groups(cluster)
    for group, (name, gives, without) in _ADD_ONS.items():
        versions = groups.get(group)
        if versions:
            yield Finding(name, Verdict.OK, f"{', '.join(versions)}: {gives}")
        else:
            yield Finding(name, Verdict.NOTE, f"not installed: {gives}", without)
    if "kueue.x-k8s.io" in groups:
        yield await _queues(cluster, namespace, groups["kueue.x-k8s.io"][0])


async def _allowed(
    findings: AsyncIterator[Finding], what: str, whose: str
) -> AsyncIterator[Finding]:
    """Those findings; one that says so where the user may not look."""
    try:
        async for finding in findings:
            yield finding
    except ApiError as error:
        if error.status != 403:
            raise
        yield Finding(
            what, Verdict.NOTE, f"not looked at: {error.message}", f"To see {what}, be allowed to list them ({whose})."
        )  # fmt: skip


def _version(told: Object) -> Finding:
    text = str(told.get("gitVersion", ""))
    found = re.match(r"v?(\d+)\.(\d+)", text)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number < _OLDEST:
        return Finding(
            "kubernetes", Verdict.MISSING, text or "unknown", "Graft needs 1.30 or later: upgrade."
        )
    if number > _NEWEST:
        return Finding(
            "kubernetes",
            Verdict.NOTE,
            text,
            "Newer than 1.36, the last that this Graft was checked for: look for a newer Graft.",
        )
    return Finding("kubernetes", Verdict.OK, text)


async def _nodes(cluster: Api) -> AsyncIterator[Finding]:
    nodes = await cluster.items("/api/v1/nodes")
    ready = [node for node in nodes if condition(node, "Ready") == "True"]
    if not ready:
        yield Finding(
            "nodes", Verdict.MISSING, f"none of {len(nodes)} is ready", "kubectl describe nodes"
        )
        return
    arches = sorted({str(node["status"]["nodeInfo"]["architecture"]) for node in ready})
    yield Finding("nodes", Verdict.OK, f"{len(ready)} of {len(nodes)} ready, {', '.join(arches)}")
    if "amd64" not in arches:
        yield Finding(
            "architecture",
            Verdict.MISSING,
            f"no node is amd64, but {', '.join(arches)}",
            "The images are for amd64: add such nodes, or build your own with `make images`.",
        )
    for finding in _gpus(ready):
        yield finding


def _gpus(nodes: Sequence[Object]) -> Iterator[Finding]:
    found = False
    for resource in _GPUS:
        counts = [int(node["status"].get("allocatable", {}).get(resource, 0)) for node in nodes]
        if any(counts):
            found = True
            holders = sum(count > 0 for count in counts)
            yield Finding("GPUs", Verdict.OK, f"{sum(counts)} {resource} on {holders} nodes")
    silent = [
        str(node["metadata"]["name"])
        for node in nodes
        if any(node["metadata"].get("labels", {}).get(label) for label in _HAS_GPU)
        and not any(int(node["status"].get("allocatable", {}).get(one, 0)) for one in _GPUS)
    ]
    if silent:
        yield Finding(
            "GPU plugin",
            Verdict.MISSING,
            f"{_some(silent)} have a GPU that no pod can ask for",
            "Install NVIDIA's GPU operator or device plugin, or look why it does not run there: "
            "kubectl get pods -A -o wide | grep -i nvidia",
        )
    elif not found:
        yield Finding(
            "GPUs",
            Verdict.NOTE,
            "none: overlays/dev trains and serves on CPUs",
            "For overlays/gpu add nodes with GPUs and their device plugin.",
        )


async def _storage(cluster: Api) -> AsyncIterator[Finding]:
    classes = await cluster.items("/apis/storage.k8s.io/v1/storageclasses")
    default = [
        one["metadata"]["name"]
        for one in classes
        if (one["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    names = [str(one["metadata"]["name"]) for one in classes]
    if len(default) == 1:
        yield Finding("storage class", Verdict.OK, f"{default[0]} is the default")
    elif default:
        yield Finding(
            "storage class",
            Verdict.NOTE,
            f"{_some(default)} are all the default",
            "Leave the annotation on one of them, so that it is clear which a claim gets.",
        )
    else:
        yield Finding(
            "storage class",
            Verdict.NOTE,
            f"no default among {_some(names)}" if names else "there is none",
            "overlays/dev needs none. For volumes that outlive pods name one in the claims "
            "(storageClassName), or make one the default.",
        )
    shared = [one["metadata"]["name"] for one in classes if _SHARED.search(one["provisioner"])]
    if shared:
        yield Finding("shared storage", Verdict.OK, f"{_some(shared)} (ReadWriteMany, by its kind)")
    else:
        yield Finding(
            "shared storage",
            Verdict.NOTE,
            "no class of a kind that many nodes may write (ReadWriteMany)",
            "Needed only to share bases and adapters between nodes on a volume; the object store "
            "and each node's own cache do without.",
        )


async def _groups(cluster: Api) -> Mapping[str, Sequence[str]]:
    """Versions of each API group, the preferred one first."""
    groups = (await cluster.get("/apis")).get("groups") or []
    found: dict[str, Sequence[str]] = {}
    for group in groups:
        preferred = (group.get("preferredVersion") or {}).get("version", "")
        versions = [str(one["version"]) for one in group.get("versions") or []]
        found[group["name"]] = sorted(versions, key=lambda one: one != preferred)
    # Before its first stable version it had this name.
    if "inference.networking.x-k8s.io" in found:
        found.setdefault("inference.networking.k8s.io", found["inference.networking.x-k8s.io"])
    return found


async def _queues(cluster: Api, namespace: str, version: str) -> Finding:
    path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues"
    try:
        queues = await cluster.items(path)
    except ApiError as error:
        if error.status not in (403, 404):
            raise
        return Finding("Kueue queues", Verdict.NOTE, f"not looked at: {error.message}")
    if queues:
        return Finding("Kueue queues", Verdict.OK, _some(one["metadata"]["name"] for one in queues))
    return Finding(
        "Kueue queues",
        Verdict.NOTE,
        f"no LocalQueue in {namespace}",
        "The component deploy/k8s/components/kueue makes one; a job with another queue's name waits "
        "for ever.",
    )


def condition(thing: Object, kind: str) -> str:
    """Status of a condition: "True", "False", "Unknown", or "" where it has none."""
    for one in (thing.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind:
            return str(one.get("status"))
    return ""


def _some(names: Iterable[object]) -> str:
    """The first few, and how many more."""
    each = [str(name) for name in names]
    more = f" and {len(each) - 5} more" if len(each) > 5 else ""
    return ", ".join(each[:5]) + more
