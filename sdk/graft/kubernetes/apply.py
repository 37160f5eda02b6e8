"""Applies objects to a cluster with the user's kubeconfig, server-side, and waits for a Deployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason
from graft.kubernetes.api import APPLY_PATCH, Api, ApiError, Query
from graft.kubernetes.connect import opened
from graft.kubernetes.kinds import CONFIG_MAPS, KINDS, kind_of
from graft.kubernetes.refusals import Meaning, in_words

MANAGER = "graft"
_NOT_FOUND = 404
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

    def __init__(self, api: Api) -> None:
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
        before = await self._request("GET", manifest, gone_is_fine=True)
        query = [("fieldManager", MANAGER), ("force", str(force).lower())]
        dry = [("dryRun", "All")] if dry_run else []
        after = await self._request("PATCH", manifest, [*query, *dry], manifest)
        return Applied(
            manifest["kind"], manifest["metadata"]["name"], _action(before or None, after)
        )

    async def prune_configs(self, deployment: str, namespace: str, selector: str) -> list[str]:
        """Deletes ConfigMaps that no ReplicaSet of a Deployment uses any more; returns their names."""
        sets = await self._list("ReplicaSet", namespace, selector)
        current = await self.get("apps/v1", "Deployment", namespace, deployment)
        pods = [one["spec"]["template"] for one in (*sets, current)]
        used = set().union(*(_config_names(pod["spec"]) for pod in pods))
        found = await self._list("ConfigMap", namespace, f"{selector},graft.dev/config")
        stale = sorted({one["metadata"]["name"] for one in found} - used)
        for name in stale:
            manifest = _reference(CONFIG_MAPS.api_version, "ConfigMap", namespace, name)
            await self._request("DELETE", manifest, gone_is_fine=True)
        return stale

    async def get(
        self, api_version: str, kind: str, namespace: str, name: str
    ) -> Mapping[str, Any]:
        """An object.

        Raises:
            GraftError: NOT_SUPPORTED, also where it does not exist.
        """
        return await self._request("GET", _reference(api_version, kind, namespace, name))

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

    async def _list(self, kind: str, namespace: str, selector: str) -> list[dict[str, Any]]:
        query = [("labelSelector", selector)]
        try:
            return await self._api.items(KINDS[kind].path(namespace), query)
        except ApiError as error:
            raise in_words(error, f"{kind}s", _meanings(kind)) from None

    async def _request(
        self,
        method: str,
        about: Mapping[str, Any],
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        *,
        gone_is_fine: bool = False,
    ) -> dict[str, Any]:
        """One call about an object; {} where it is gone and that is fine."""
        kind, meta = kind_of(about), about["metadata"]
        path = kind.path(meta.get("namespace", ""), meta["name"])
        try:
            return await self._api.call(
                method,
                path,
                None if body is None else dict(body),
                query,
                content_type="" if body is None else APPLY_PATCH,
                patience_s=0.0,
            )
        except ApiError as error:
            if error.status == _NOT_FOUND and gone_is_fine:
                return {}
            raise in_words(error, f"{kind.name} {meta['name']}", _meanings(kind.name)) from None


@asynccontextmanager
async def open_cluster(kubeconfig: str | None, context: str | None) -> AsyncIterator[Cluster]:
    """The cluster that a kubeconfig names; within a pod, without one, that pod's own.

    Raises:
        GraftError: NOT_INSTALLED, INVALID_REQUEST.
    """
    async with opened(kubeconfig, context or "") as api:
        yield Cluster(api)


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


def _reference(api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


_DENIED = Meaning(
    Reason.PERMISSION_DENIED,
    "the cluster does not let you",
    "Ask for that right, or render (-o) and have somebody apply it.",
)
_INVALID = Meaning(
    Reason.INVALID_REQUEST,
    "the cluster refuses {what}",
    "Change the option that it names; what cannot be changed in place has to be deleted first.",
)
_CONFLICT = Meaning(
    Reason.IN_USE,
    "{what} is managed by somebody else as well",
    "Leave it to them, or take it over with --force.",
)

_INSTALL = {
    "ScaledObject": "Install KEDA, or scale otherwise.",
    "Certificate": "Install cert-manager, or bring a Secret with certificates of your own.",
}


def _meanings(kind: str) -> Mapping[int, Meaning]:
    missing = Meaning(
        Reason.NOT_SUPPORTED,
        "the cluster does not have what {what} needs",
        _INSTALL.get(
            kind, "Create the namespace first (`kubectl create namespace`), or name another."
        ),
    )
    return {
        401: _DENIED,
        403: _DENIED,
        404: missing,
        409: _CONFLICT,
        400: _INVALID,
        422: _INVALID,
    }
