"""The way to the cluster: from inside a pod by its service account, from outside by a kubeconfig file."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError, Reason
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config.config_exception import ConfigException

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of the API server.

    Args:
        client: the generated library's.
        namespace: that it works in.
        renew: reads the credentials again, for when they are refused.
    """

    client: client.ApiClient
    namespace: str
    renew: Callable[[], Awaitable[None]]


async def connect(kubeconfig: Path | None, context: str, namespace: str) -> Connection:
    """Connects as the settings say.

    Args:
        kubeconfig: a file; None for the pod's service account, and outside of a pod KUBECONFIG's file.
        context: of the kubeconfig; "" for its current one.
        namespace: "" for the pod's, or the context's.

    Raises:
        GraftError: INVALID_REQUEST, when there is neither or it cannot be used.
    """
    configuration = client.Configuration()
    inside = kubeconfig is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))

    async def load() -> str:
        try:
            if inside:
                # Read again by the library once a minute: the file's token rotates.
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                return (_ACCOUNT / "namespace").read_text("utf-8").strip()
            loader = await config.load_kube_config(
                config_file=str(kubeconfig) if kubeconfig else None,
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
            return str((loader.current_context or {})["context"].get("namespace", ""))
        except (ConfigException, OSError, KeyError) as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"There is no way to the Kubernetes API: {error}",
                next_step="Run the trainer in a pod with a service account, or set "
                "GRAFT_TRAINER_KUBERNETES_KUBECONFIG to a kubeconfig file.",
            ) from None

    found = await load()

    async def renew() -> None:
        await load()

    return Connection(client.ApiClient(configuration), namespace or found or "default", renew)
