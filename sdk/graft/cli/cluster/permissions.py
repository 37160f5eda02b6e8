"""Who may do what: the user who installs, and the trainer's service account once it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from graft.cli.doctor import Finding, Verdict
from graft.kubernetes.api import Api, ApiError

TRAINER = "graft-trainer"
_AT_ONCE = 8
_OWN = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_OTHERS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Need:
    """Verbs on one kind of resource; a name like "pods/log" has its subresource in it."""

    group: str
    resource: str
    verbs: Sequence[str]
    cluster_wide: bool = False

    def __str__(self) -> str:
        return f"{self.resource}.{self.group}" if self.group else self.resource


# The trainer's Role, rule by rule: what its Kubernetes launcher does.
TRAINER_NEEDS = (
    Need("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    Need("jobset.x-k8s.io", "jobsets", ("create", "get", "list", "watch", "patch", "delete")),
    Need("trainer.kubeflow.org", "trainjobs", ("create", "get", "list", "watch", "delete")),
    Need("trainer.kubeflow.org", "trainingruntimes", ("create", "list", "patch", "delete")),
    Need("kueue.x-k8s.io", "workloads", ("list", "watch")),
    Need("", "pods", ("list", "watch", "delete")),
    Need("", "pods/log", ("get",)),
    Need("", "events", ("list", "watch")),
    Need("", "configmaps", ("create",)),
    Need("", "secrets", ("create",)),
    Need("", "services", ("create",)),
    Need("", "persistentvolumeclaims", ("create", "list", "patch", "delete")),
)
# The worker's: how a job goes that no trainer hears is written onto its own Job.
WORKER_NEEDS = (Need("batch", "jobs", ("patch",)), Need("", "events", ("create",)))
_APPLY = ("get", "create", "patch")
# What `kubectl apply -k` of an overlay makes.
INSTALLER_NEEDS = (
    Need("", "namespaces", _APPLY, cluster_wide=True),
    Need("scheduling.k8s.io", "priorityclasses", _APPLY, cluster_wide=True),
    Need("apps", "deployments", _APPLY),
    Need("apps", "statefulsets", _APPLY),
    Need("", "services", _APPLY),
    Need("", "configmaps", _APPLY),
    Need("", "secrets", _APPLY),
    Need("", "serviceaccounts", _APPLY),
    Need("", "persistentvolumeclaims", _APPLY),
    Need("rbac.authorization.k8s.io", "roles", _APPLY),
    Need("rbac.authorization.k8s.io", "rolebindings", _APPLY),
    Need("policy", "poddisruptionbudgets", _APPLY),
    Need("networking.k8s.io", "networkpolicies", _APPLY),
)


async def look_at_permissions(cluster: Api, namespace: str) -> list[Finding]:
    """What the user may not, of what installing takes, and what the trainer may not."""
    installer = await _refused(cluster, namespace, INSTALLER_NEEDS, "")
    # Nobody can give away in a Role what he has not himself.
    grants = await _refused(cluster, namespace, (*TRAINER_NEEDS, *WORKER_NEEDS), "")
    return [
        _verdict("you may install", installer, namespace, _INSTALLER_STEP),
        _verdict("you may grant the Roles", grants, namespace, _GRANT_STEP),
        await _trainer(cluster, namespace),
    ]


_INSTALLER_STEP = (
    "Ask the cluster's administrator for these, or to apply what is cluster-wide (namespace, "
    "priority classes) for you."
)
_GRANT_STEP = "A Role can only be made by who may do all that is in it: ask for the role `edit` or `admin` here."


async def _trainer(cluster: Api, namespace: str) -> Finding:
    name = "the trainer may run jobs"
    account = f"system:serviceaccount:{namespace}:{TRAINER}"
    try:
        await cluster.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{TRAINER}")
        refused = await _refused(cluster, namespace, TRAINER_NEEDS, account)
    except ApiError as error:
        if error.status == 404:
            return Finding(name, Verdict.NOTE, f"{TRAINER} is not there yet: not installed")
        if error.status != 403:
            raise
        return Finding(
            name,
            Verdict.NOTE,
            f"not looked at: {error.message}",
            f"An administrator sees it: kubectl auth can-i --list --as {account} -n {namespace}",
        )
    step = "Apply the overlay again: its Role graft-trainer has exactly these verbs."
    return _verdict(name, refused, namespace, step)


def _verdict(name: str, refused: Sequence[str], namespace: str, step: str) -> Finding:
    if not refused:
        return Finding(name, Verdict.OK, f"in namespace {namespace}")
    return Finding(name, Verdict.MISSING, f"not allowed: {'; '.join(refused)}", step)


async def _refused(cluster: Api, namespace: str, needs: Sequence[Need], user: str) -> list[str]:
    """What of the needs is refused, as "create, patch on jobs.batch". Raises ApiError."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(need: Need, verb: str) -> bool:
        async with turns:
            return await _is_allowed(cluster, namespace, need, verb, user)

    asked = [(need, verb) for need in needs for verb in need.verbs]
    answers = await asyncio.gather(*(ask(*one) for one in asked))
    no = [one for one, allowed in zip(asked, answers, strict=True) if not allowed]
    return list(_grouped(no))


def _grouped(refused: Iterable[tuple[Need, str]]) -> Iterator[str]:
    verbs: dict[Need, list[str]] = {}
    for need, verb in refused:
        verbs.setdefault(need, []).append(verb)
    for need, each in verbs.items():
        yield f"{', '.join(each)} on {need}"


async def _is_allowed(cluster: Api, namespace: str, need: Need, verb: str, user: str) -> bool:
    resource, _, subresource = need.resource.partition("/")
    attributes = {"group": need.group, "resource": resource, "verb": verb}
    if subresource:
        attributes["subresource"] = subresource
    if not need.cluster_wide:
        attributes["namespace"] = namespace
    spec: dict[str, object] = {"resourceAttributes": attributes}
    if user:
        spec |= {
            "user": user,
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
        }  # fmt: skip
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview" if user else "SelfSubjectAccessReview",
        "spec": spec,
    }
    answer = await cluster.call("POST", _OTHERS if user else _OWN, body, patience_s=0.0)
    return bool((answer.get("status") or {}).get("allowed"))
