"""Applies objects to a cluster with the user's kubeconfig, server-side, and waits for a Deployment.

Only what `graft bases deploy` makes is known here; kubernetes-asyncio is imported when it is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

MANAGER = "graft"
_PLURALS = {
    "ConfigMap": "configmaps",
    "Service": "services",
    "PersistentVolume": "persistentvolumes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "ScaledObject": "scaledobjects",
    "Certificate": "certificates",
}
_OF_THE_CLUSTER = ("PersistentVolume",)
_NEEDS = {"ScaledObject": "KEDA", "Certificate": "cert-manager"}
_TIMEOUT_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one object: created, changed or unchanged."""

    kind: str
    name: str
    action: str


class Cluster:
    """A Kubernetes API server. Every method may raise UNAVAILABLE and PERMISSION_DENIED.

    Args:
        api: a client of it.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def apply(
        self, manifest: Mapping[str, Any], *, force: bool = False, dry_run: bool = False
    ) -> Applied:
        """Makes an object what a manifest says, and leaves what others manage.

        Args:
            force: also take over what others manage.
            dry_run: only see whether it would be accepted.

        Raises:
            GraftError: INVALID_REQUEST with the server's words, IN_USE where others manage a field,
                NOT_SUPPORTED where the cluster does not know the kind.
        """
        before = await self._get(manifest)
        query = [("fieldManager", MANAGER), ("force", str(force).lower())]
        after = await self._request(
            "PATCH",
            _path(manifest),
            query + ([("dryRun", "All")] if dry_run else []),
            manifest,
            what=_named(manifest),
        )
        return Applied(manifest["kind"], manifest["metadata"]["name"], _action(before, after))

    async def prune_configs(self, deployment: str, namespace: str, selector: str) -> list[str]:
        """Deletes ConfigMaps that no ReplicaSet of a Deployment uses any more; returns their names."""
        sets = await self._list("apps/v1", "ReplicaSet", namespace, selector)
        pods = [one["spec"]["template"] for one in sets]
        pods.append(
            (await self.get("apps/v1", "Deployment", namespace, deployment))["spec"]["template"]
        )
        used = set().union(*(_config_names(pod["spec"]) for pod in pods))
        found = await self._list("v1", "ConfigMap", namespace, f"{selector},graft.dev/config")
        stale = sorted({one["metadata"]["name"] for one in found} - used)
        for name in stale:
            manifest = _reference("v1", "ConfigMap", namespace, name)
            await self._request(
                "DELETE", _path(manifest), what=f"ConfigMap {name}", gone_is_fine=True
            )
        return stale

    async def get(
        self, api_version: str, kind: str, namespace: str, name: str
    ) -> Mapping[str, Any]:
        """An object.

        Raises:
            GraftError: NOT_SUPPORTED, also where it does not exist.
        """
        manifest = _reference(api_version, kind, namespace, name)
        found: Mapping[str, Any] = await self._request(
            "GET", _path(manifest), what=f"{kind} {name}"
        )
        return found

    async def rolled_out(
        self,
        name: str,
        namespace: str,
        timeout_s: float,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Returns when all replicas of a Deployment are new and ready.

        Args:
            told: called with what is so now, whenever that is something else.

        Raises:
            GraftError: UNAVAILABLE after timeout_s, or when Kubernetes gives up; the old ones go on.
        """
        loop = asyncio.get_running_loop()
        until_s, last = loop.time() + timeout_s, ""
        while True:
            deployment = await self.get("apps/v1", "Deployment", namespace, name)
            done, says = rollout_state(deployment)
            if says != last:
                told(says)
                last = says
            if done:
                return
            gave_up = _gave_up(deployment)
            if gave_up or loop.time() > until_s:
                raise GraftError(
                    Reason.UNAVAILABLE,
                    f"{name} is not rolled out {gave_up or f'after {timeout_s:g} s'}: {says}",
                    next_step="The old replicas go on. See why with `kubectl describe pods -l "
                    f"app.kubernetes.io/instance={name}`; `kubectl rollout undo deployment {name}` "
                    "takes it back.",
                )
            await asyncio.sleep(_POLL_S)

    async def _get(self, manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
        what = _named(manifest)
        found: Mapping[str, Any] | None = await self._request(
            "GET", _path(manifest), what=what, gone_is_fine=True
        )
        return found

    async def _list(
        self, api_version: str, kind: str, namespace: str, selector: str
    ) -> Sequence[Mapping[str, Any]]:
        path = _path(_reference(api_version, kind, namespace, "")).rstrip("/")
        answer = await self._request("GET", path, [("labelSelector", selector)], what=f"{kind}s")
        items: Sequence[Mapping[str, Any]] = answer["items"]
        return items

    async def _request(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        *,
        what: str,
        gone_is_fine: bool = False,
    ) -> Any:
        from aiohttp import ClientError
        from kubernetes_asyncio.client import ApiException

        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/apply-patch+yaml"
        try:
            answer, _, _ = await self._api.call_api(
                path,
                method,
                query_params=list(query),
                header_params=headers,
                body=None if body is None else dict(body),
                response_types_map={200: "object", 201: "object", 202: "object"},
                auth_settings=["BearerToken"],
                _request_timeout=_TIMEOUT_S,
            )
        except ApiException as error:
            if error.status == 404 and gone_is_fine:
                return None
            raise _refused(error.status, str(error.body or error.reason), what) from None
        except (ClientError, OSError, TimeoutError) as error:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"the cluster cannot be reached: {error or type(error).__name__}",
                next_step="Check `kubectl cluster-info`, and --context.",
            ) from None
        return answer


@asynccontextmanager
async def open_cluster(kubeconfig: str | None, context: str | None) -> AsyncIterator[Cluster]:
    """The cluster that a kubeconfig names; within a pod, without one, that pod's own.

    Raises:
        GraftError: NOT_INSTALLED, INVALID_REQUEST.
    """
    try:
        from kubernetes_asyncio import client, config
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "kubernetes-asyncio, which speaks to a cluster, is not installed",
            next_step="Run `pip install 'graft-adapters[kubernetes]'`, or render (-o) and apply with "
            "kubectl.",
        ) from None
    configuration = client.Configuration()
    try:
        if kubeconfig is None and context is None and _in_a_pod():
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(
                config_file=kubeconfig, context=context, client_configuration=configuration
            )
    except (config.ConfigException, OSError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"there is no usable kubeconfig: {error}",
            next_step="Name one with --kubeconfig or KUBECONFIG, and a context of it with --context.",
        ) from None
    async with client.ApiClient(configuration) as api:
        yield Cluster(api)


def _in_a_pod() -> bool:
    named = os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser().exists()
    return not named and "KUBERNETES_SERVICE_HOST" in os.environ


def rollout_state(deployment: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a Deployment is rolled out, and what is so now."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False, "Kubernetes has not looked at it yet"
    new, every = status.get("updatedReplicas", 0), status.get("replicas", 0)
    ready = status.get("availableReplicas", 0)
    done = new >= wanted and every <= new and ready >= wanted
    return done, f"{new} of {wanted} replicas are new, {ready} ready, {max(0, every - new)} old"


def _gave_up(deployment: Mapping[str, Any]) -> str:
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    found = (one for one in conditions if one.get("reason") == "ProgressDeadlineExceeded")
    return "and Kubernetes has given up" if next(found, None) else ""


def _action(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    if before is None:
        return "created"
    same = before["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion")
    return "unchanged" if same else "changed"


def _config_names(pod: Mapping[str, Any]) -> set[str]:
    containers = [*pod.get("containers", ()), *pod.get("initContainers", ())]
    sources = [source for one in containers for source in one.get("envFrom", ())]
    return {source["configMapRef"]["name"] for source in sources if "configMapRef" in source}


def _path(manifest: Mapping[str, Any]) -> str:
    version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    if kind not in _OF_THE_CLUSTER:
        root += f"/namespaces/{metadata['namespace']}"
    return f"{root}/{_PLURALS[kind]}/{metadata['name']}"


def _reference(api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _named(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _refused(status: int, body: str, what: str) -> GraftError:
    says = _message(body)
    needs = _NEEDS.get(what.partition(" ")[0], "")
    if status in (401, 403):
        return GraftError(
            Reason.PERMISSION_DENIED,
            f"the cluster does not let you: {says}",
            next_step="Ask for that right, or render (-o) and have somebody apply it.",
        )
    if status == 404:
        return GraftError(
            Reason.NOT_SUPPORTED,
            f"the cluster does not have what {what} needs: {says}",
            next_step=f"Install {needs}, or scale otherwise."
            if needs
            else "Create the namespace first (`kubectl create namespace`), or name another.",
        )
    if status == 409:
        return GraftError(
            Reason.IN_USE,
            f"{what} is managed by somebody else as well: {says}",
            next_step="Leave it to them, or take it over with --force.",
        )
    if status in (400, 422):
        return GraftError(
            Reason.INVALID_REQUEST,
            f"the cluster refuses {what}: {says}",
            next_step="Change the option that it names; what cannot be changed in place has to be "
            "deleted first.",
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"the cluster answered {status} for {what}: {says}",
        next_step="Try again; `kubectl get --raw /readyz?verbose` says how it is.",
    )


def _message(body: str) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body.strip()[:500]
    return str(said.get("message", body)) if isinstance(said, dict) else body[:500]
