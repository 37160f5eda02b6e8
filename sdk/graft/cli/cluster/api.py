"""What the cluster's doctor asks the API server: plain JSON, so that no server's version is too old or new."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from graft.errors import GraftError, Reason

Object = Mapping[str, Any]
_PAGE = 500


class Refusal(Exception):
    """The API server answered with an error status; message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Cluster(Protocol):
    """What a doctor may ask; the real one is KubernetesCluster."""

    async def get(self, path: str) -> Object:
        """The object at a path. Raises Refusal; GraftError UNAVAILABLE without an answer."""

    async def items(self, path: str) -> Sequence[Object]:
        """All objects of a list, page by page. Raises as get."""

    async def review(self, path: str, body: Object) -> Object:
        """Posts a question that stores nothing, such as an access review. Raises as get."""


class KubernetesCluster:
    """A cluster through kubernetes-asyncio's client, for its credentials of every kind.

    Args:
        client: its ApiClient.
        timeout_s: of each call.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s

    async def get(self, path: str) -> Object:
        """See Cluster."""
        return await self._call(path, "GET")

    async def items(self, path: str) -> Sequence[Object]:
        """See Cluster."""
        found: list[Object] = []
        token = ""
        while True:
            query = [("limit", str(_PAGE)), *([("continue", token)] if token else [])]
            page = await self._call(path, "GET", query=query)
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    async def review(self, path: str, body: Object) -> Object:
        """See Cluster."""
        return await self._call(path, "POST", body=body)

    async def _call(
        self,
        path: str,
        method: str,
        body: Object | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Object:
        import aiohttp

        try:
            response = await self._client.call_api(
                path,
                method,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            )
            async with response:
                data, status = await response.read(), response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._unreachable(error) from None
        return _parsed(data, status)

    def _unreachable(self, error: Exception) -> GraftError:
        host = self._client.configuration.host
        said = str(error) or f"no answer within {self._timeout_s:g} s"
        return GraftError(
            Reason.UNAVAILABLE,
            f"The Kubernetes API at {host} cannot be reached: {said}",
            next_step="See whether `kubectl version` works with the same kubeconfig and context; "
            "a VPN or a login may have ended.",
        )


def _parsed(data: bytes, status: int) -> Object:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"message": data[:200].decode("utf-8", "replace")}
    if status == 401:
        raise GraftError(
            Reason.PERMISSION_DENIED,
            f"The Kubernetes API does not accept these credentials: {answer.get('message')}",
            next_step="Log in again, as your cluster's provider says, then `kubectl auth whoami`.",
        )
    if status >= 300:
        raise Refusal(status, str(answer.get("message") or f"HTTP {status}"))
    return dict(answer)


@asynccontextmanager
async def connected(
    kubeconfig: Path | None, context: str | None, timeout_s: float
) -> AsyncIterator[KubernetesCluster]:
    """The cluster that a kubeconfig names.

    Args:
        kubeconfig: a file; None for $KUBECONFIG, else ~/.kube/config.
        context: of the file; None for its current one.
        timeout_s: of each call.

    Raises:
        GraftError: NOT_INSTALLED without kubernetes-asyncio, INVALID_REQUEST for a kubeconfig that is
            missing or cannot be used.
    """
    try:
        from kubernetes_asyncio import client, config
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "Talking to a cluster needs the package kubernetes-asyncio, which is not installed",
            next_step="Install it: pip install 'graft-adapters[kubernetes]'.",
        ) from None
    configuration = client.Configuration()
    try:
        await config.load_kube_config(
            config_file=str(kubeconfig) if kubeconfig else None,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
    except (config.ConfigException, OSError, KeyError, ValueError, TypeError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The kubeconfig cannot be used: {error}",
            next_step="Name a file in KUBECONFIG or --kubeconfig, and a context of it: "
            "`kubectl config get-contexts` lists them.",
        ) from None
    api = client.ApiClient(configuration)
    try:
        yield KubernetesCluster(api, timeout_s)
    finally:
        await api.close()
