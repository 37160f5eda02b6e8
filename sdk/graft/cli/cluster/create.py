"""Creates objects in the cluster of the user's kubeconfig, and says in words why it cannot."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from graft.errors import GraftError, Reason
from graft.kubernetes.job_template import Manifest, owned

_KUBECONFIG = "~/.kube/config"
_PLURALS = {"Job": "jobs", "CronJob": "cronjobs", "ConfigMap": "configmaps", "Service": "services"}


@asynccontextmanager
async def open_cluster(context: str, namespace: str) -> AsyncIterator[Cluster]:
    """The cluster of a kubeconfig's context.

    Args:
        context: "" for the current one.
        namespace: "" for the context's own.

    Raises:
        GraftError: NOT_INSTALLED, INVALID_REQUEST (no kubeconfig, no such context).
    """
    try:
        from kubernetes_asyncio import client, config
        from kubernetes_asyncio.config.config_exception import ConfigException
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "kubernetes-asyncio is not installed",
            next_step="Install it with: pip install 'graft-adapters[kubernetes]'; or render the manifest with "
            "`graft jobs render` and use kubectl.",
        ) from None
    configuration = client.Configuration()
    try:
        loader = await config.load_kube_config(
            # The library looks at the variable when it is imported, and never again.
            config_file=os.environ.get("KUBECONFIG") or _KUBECONFIG,
            context=context or None,
            client_configuration=configuration,
            persist_config=False,
        )
    except (ConfigException, OSError, KeyError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"No cluster can be found by a kubeconfig: {error}",
            next_step="Set KUBECONFIG, name a context with --context, and try it with `kubectl get jobs`.",
        ) from None
    own = (loader.current_context or {}).get("context", {}).get("namespace", "")
    async with client.ApiClient(configuration) as api:
        yield Cluster(api, namespace or own or "default")


class Cluster:
    """One namespace of a cluster.

    Args:
        api: kubernetes-asyncio's client.
        namespace: Kubernetes' namespace.
    """

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    async def create(self, manifests: Sequence[Manifest]) -> None:
        """Creates the first, and all others as its own; all of them or none.

        Raises:
            GraftError: ALREADY_EXISTS, PERMISSION_DENIED, NAMESPACE_NOT_FOUND, INVALID_REQUEST (the API
                server refuses it), UNAVAILABLE.
        """
        first, *others = manifests
        owner = await self._post(first)
        try:
            for one in others:
                await self._post(owned(one, {**first, "metadata": owner["metadata"]}))
        except GraftError:
            await self._call("DELETE", f"{self._path(first)}/{first['metadata']['name']}", None)
            raise

    async def _post(self, manifest: Manifest) -> Any:
        return await self._call("POST", self._path(manifest), manifest)

    def _path(self, manifest: Manifest) -> str:
        version = manifest["apiVersion"]
        root = "/api/" if "/" not in version else "/apis/"
        return f"{root}{version}/namespaces/{self.namespace}/{_PLURALS[manifest['kind']]}"

    async def _call(self, method: str, path: str, body: Any) -> Any:
        import aiohttp

        try:
            answer = await self._api.call_api(
                path,
                method,
                query_params=[("propagationPolicy", "Background")] if method == "DELETE" else [],
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=30,
            )
            status, said = int(answer.status), await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"The Kubernetes API server cannot be reached: {error or type(error).__name__}",
                next_step="Check it with `kubectl version`, and the context with `kubectl config current-context`.",
            ) from None
        # The library leaves that to its caller where it does not read the answer itself.
        if status >= 400:
            raise _in_words(status, _message(said), body, self.namespace)
        return json.loads(said)


def _in_words(status: int, said: str, body: Any, namespace: str) -> GraftError:
    what = f"{body['kind']} {body['metadata']['name']}" if body else "it"
    if status == 409:
        return GraftError(
            Reason.ALREADY_EXISTS,
            f"There is a {what} in the namespace {namespace} already",
            next_step="Name this one otherwise with --name, or delete that one with kubectl.",
        )
    if status in (401, 403):
        return GraftError(
            Reason.PERMISSION_DENIED,
            f"The cluster does not allow it: {said}",
            next_step=f"Ask for the right to create jobs, cronjobs, configmaps and services in {namespace}.",
        )
    if status == 404:
        return GraftError(
            Reason.NAMESPACE_NOT_FOUND,
            f"The cluster has no namespace {namespace}, or no such kind of object: {said}",
            next_step="Name a namespace with --kube-namespace; `kubectl apply -k deploy/k8s/overlays/dev` makes graft.",
        )
    if status in (400, 422):
        return GraftError(
            Reason.INVALID_REQUEST,
            f"The cluster refuses the {what}: {said}",
            next_step="Mend what it names, in the spec or in the pod policy.",
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"The API server answered {status}: {said}",
        next_step="Try again; if it stays so, look at the cluster's events.",
    )


def _message(said: bytes) -> str:
    """What a Status object says, or the beginning of whatever came instead."""
    try:
        return str(json.loads(said)["message"])
    except (TypeError, ValueError, KeyError):
        return said[:300].decode("utf-8", "replace") or "it said nothing"
