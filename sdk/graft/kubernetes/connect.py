"""The way to a cluster: by a kubeconfig file, or from inside a pod by its service account.

kubernetes-asyncio, which knows credentials of every kind, is imported when it is needed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason
from graft.kubernetes.api import Api

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_KUBECONFIG = "~/.kube/config"
ADVICE = (
    "Set KUBECONFIG or name a file with --kubeconfig, and a context of it with --context: "
    "`kubectl config get-contexts` lists them."
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of the API server.

    Args:
        client: the generated library's.
        namespace: that it works in.
        renew: reads the credentials again, for when they are refused.
    """

    client: ApiClient
    namespace: str
    renew: Callable[[], Awaitable[None]]


async def connect(
    kubeconfig: Path | str | None = None,
    context: str = "",
    namespace: str = "",
    *,
    pod_first: bool = False,
    advice: str = ADVICE,
) -> Connection:
    """Connects to a cluster.

    Args:
        kubeconfig: a file; None for KUBECONFIG's or the usual one, and within a pod for the pod's account.
        context: of the kubeconfig; "" for its current one.
        namespace: "" for the pod's, or the context's.
        pod_first: within a pod its account also goes before a kubeconfig that nobody named.
        advice: the next step where there is no way.

    Raises:
        GraftError: NOT_INSTALLED; INVALID_REQUEST, when there is no way or it cannot be used.
    """
    client, config = _library()
    configuration = client.Configuration()
    inside = kubeconfig is None and not context and _in_a_pod(pod_first)

    async def load() -> str:
        try:
            if inside:
                # Read again by the library once a minute: the file's token rotates.
                config.load_incluster_config(client_configuration=configuration)
                return (_ACCOUNT / "namespace").read_text("utf-8").strip()
            loader = await config.load_kube_config(
                # The library looks at the variable when it is imported, and never again.
                config_file=str(kubeconfig or os.environ.get("KUBECONFIG") or _KUBECONFIG),
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
            return str((loader.current_context or {})["context"].get("namespace", ""))
        except (config.ConfigException, OSError, KeyError, ValueError, TypeError) as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"The kubeconfig cannot be used: {error}",
                next_step=advice,
            ) from None

    found = await load()

    async def renew() -> None:
        await load()

    return Connection(client.ApiClient(configuration), namespace or found or "default", renew)


@asynccontextmanager
async def opened(
    kubeconfig: Path | str | None = None,
    context: str = "",
    namespace: str = "",
    timeout_s: float = 30.0,
) -> AsyncIterator[Api]:
    """An Api for as long as it is used; see connect()."""
    api = Api(await connect(kubeconfig, context, namespace), timeout_s)
    try:
        yield api
    finally:
        await api.close()


def _library() -> tuple[Any, Any]:
    try:
        from kubernetes_asyncio import client, config
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "Talking to a cluster needs the package kubernetes-asyncio, which is not installed",
            next_step="Install it: pip install 'graft-adapters[kubernetes]'; or render the manifests and "
            "apply them with kubectl.",
        ) from None
    return client, config


def _in_a_pod(first: bool) -> bool:
    named = os.environ.get("KUBECONFIG") or Path(_KUBECONFIG).expanduser().exists()
    return "KUBERNETES_SERVICE_HOST" in os.environ and (first or not named)
