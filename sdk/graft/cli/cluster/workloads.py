"""What of Graft is in the cluster, and how it is: its namespace, services, pods, images, volumes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from graft.cli.cluster.platform import condition
from graft.cli.doctor import Finding, Verdict
from graft.kubernetes.api import Api, ApiError, Object

_ENFORCE = "pod-security.kubernetes.io/enforce"
_PART = "app.kubernetes.io/part-of"
_INSTALL = "Install it: kubectl apply -k deploy/k8s/overlays/dev (or gpu)."
# Why a container waits: what to do. Others are shown with their message.
_WAITING: Mapping[str, str] = {
    "ImagePullBackOff": "image",
    "ErrImagePull": "image",
    "InvalidImageName": "image",
    "ImageInspectError": "image",
    "ErrImageNeverPull": "image",
    "CreateContainerConfigError": "Make the Secret or ConfigMap that it names, in the same namespace.",
    "CreateContainerError": "kubectl describe pod says more.",
    "CrashLoopBackOff": "Its last words: kubectl logs --previous",
    "RunContainerError": "kubectl describe pod says more.",
}
_KINDS = (("deployments", "Deployment"), ("statefulsets", "StatefulSet"))
_MOST = 8


async def look_at_workloads(cluster: Api, namespace: str) -> AsyncIterator[Finding]:
    """Findings about the namespace and what is in it."""
    try:
        found = await cluster.get(f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.status == 404:
            yield Finding("namespace", Verdict.NOTE, f"{namespace} is not there", _INSTALL)
            return
        if error.status != 403:
            raise
        yield Finding("namespace", Verdict.NOTE, f"not looked at: {error.message}")
    else:
        yield _pod_security(found, namespace)
    try:
        async for finding in _installed(cluster, namespace):
            yield finding
    except ApiError as error:
        if error.status != 403:
            raise
        step = f"Ask for the role `view` in the namespace {namespace}."
        yield Finding("workloads", Verdict.NOTE, f"not looked at: {error.message}", step)


def _pod_security(namespace: Object, name: str) -> Finding:
    level = (namespace["metadata"].get("labels") or {}).get(_ENFORCE, "")
    if level == "restricted":
        return Finding("pod security", Verdict.OK, f"{name} enforces restricted")
    said = f"{name} enforces {level}" if level else f"{name} enforces no level"
    return Finding(
        "pod security",
        Verdict.NOTE,
        said,
        f"Every pod of Graft passes the strictest: kubectl label namespace {name} {_ENFORCE}=restricted",
    )


async def _installed(cluster: Api, namespace: str) -> AsyncIterator[Finding]:
    pods = [
        pod for pod in await cluster.items(f"/api/v1/namespaces/{namespace}/pods") if _is_ours(pod)
    ]
    count = 0
    for plural, kind in _KINDS:
        for one in await cluster.items(f"/apis/apps/v1/namespaces/{namespace}/{plural}"):
            if _is_ours(one):
                count += 1
                yield _health(one, kind, namespace)
    if not count:
        yield Finding("graft", Verdict.NOTE, f"nothing of it runs in {namespace}", _INSTALL)
    for finding in _shortened(list(_pods(pods, namespace)), namespace):
        yield finding
    async for finding in _pull_secrets(cluster, namespace, pods):
        yield finding
    for claim in await cluster.items(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"):
        if (claim.get("status") or {}).get("phase") == "Pending":
            name = claim["metadata"]["name"]
            wanted = (claim.get("spec") or {}).get("storageClassName") or "the default class"
            yield Finding(
                f"volume {name}",
                Verdict.MISSING,
                f"no volume for it yet ({wanted})",
                f"kubectl -n {namespace} describe pvc {name} says why; a class that waits for its first "
                "pod is fine.",
            )


def _is_ours(thing: Object) -> bool:
    return (thing["metadata"].get("labels") or {}).get(_PART) == "graft"


def _health(workload: Object, kind: str, namespace: str) -> Finding:
    name, status = str(workload["metadata"]["name"]), workload.get("status") or {}
    wanted = int((workload.get("spec") or {}).get("replicas", 1))
    ready = int(status.get("readyReplicas") or 0)
    told = f"{ready} of {wanted} ready"
    if wanted == 0:
        return Finding(name, Verdict.NOTE, "scaled to none")
    seen = int(status.get("observedGeneration") or 0)
    current = int(status.get("updatedReplicas") or 0)
    old = seen >= int(workload["metadata"].get("generation") or 0) and current < wanted
    if ready >= wanted and not old:
        return Finding(name, Verdict.OK, told)
    if ready >= wanted:
        step = f"kubectl -n {namespace} rollout status {kind.lower()}/{name}"
        return Finding(name, Verdict.NOTE, f"{told}, {current} of the newest kind", step)
    stuck = condition(workload, "Progressing") == "False"
    return Finding(
        name,
        Verdict.MISSING,
        f"{told}{', and its rollout gave up' if stuck else ''}",
        f"See its pods below, or kubectl -n {namespace} describe {kind.lower()} {name}",
    )


def _pods(pods: Sequence[Object], namespace: str) -> Iterator[Finding]:
    for pod in pods:
        name, status = str(pod["metadata"]["name"]), pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            continue
        for one in status.get("conditions") or []:
            if one.get("type") == "PodScheduled" and one.get("reason") == "Unschedulable":
                yield Finding(
                    f"pod {name}",
                    Verdict.MISSING,
                    f"no node for it: {one.get('message', '')}",
                    "Add such a node, free one, or ask for less.",
                )
        states = (status.get("initContainerStatuses") or []) + (
            status.get("containerStatuses") or []
        )
        for container in states:
            yield from _container(container, name, namespace)


def _container(container: Object, pod: str, namespace: str) -> Iterator[Finding]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason", ""))
    if reason in _WAITING:
        step = _WAITING[reason]
        if step == "image":
            step = (
                f"Check the name {container.get('image')}, that its registry can be reached from the "
                "nodes, and that an imagePullSecret lets this namespace read it; set images in the "
                "overlay's `images:`."
            )
        elif reason == "CrashLoopBackOff":
            step = f"kubectl -n {namespace} logs {pod} -c {container['name']} --previous"
        detail = ": ".join(filter(None, (reason, str(waiting.get("message", ""))[:300])))
        yield Finding(f"pod {pod}", Verdict.MISSING, f"{container['name']}: {detail}", step)
    last = (container.get("lastState") or {}).get("terminated") or {}
    if last.get("reason") == "OOMKilled":
        yield Finding(
            f"pod {pod}",
            Verdict.NOTE,
            f"{container['name']} was ended for taking more memory than its limit",
            "Raise its memory limit in the overlay.",
        )


def _shortened(findings: list[Finding], namespace: str) -> Iterator[Finding]:
    """The first of many: a cluster may have thousands of pods that fail alike."""
    yield from findings[:_MOST]
    if len(findings) > _MOST:
        step = f"kubectl -n {namespace} get pods"
        yield Finding("pods", Verdict.MISSING, f"{len(findings) - _MOST} more like these", step)


async def _pull_secrets(
    cluster: Api, namespace: str, pods: Sequence[Object]
) -> AsyncIterator[Finding]:
    named = {
        one["name"]
        for pod in pods
        for one in (pod.get("spec") or {}).get("imagePullSecrets") or []
        if one.get("name")
    }
    for name in sorted(named):
        try:
            await cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except ApiError as error:
            if error.status == 404:
                yield Finding(
                    "image pull",
                    Verdict.MISSING,
                    f"the pull secret {name} is not there",
                    f"kubectl -n {namespace} create secret docker-registry {name} --docker-server=...",
                )
