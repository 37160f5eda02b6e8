"""The few calls to Kubernetes' API server that a worker makes: annotations and events of its own Job.

By plain HTTP, because a client of the whole API is larger than the rest of the worker's own code.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 10.0
_MOST_MESSAGE = 1024
SOURCE = "graft-worker"


@dataclass(frozen=True, slots=True)
class JobAddress:
    """Where the Job of this pod is, and how the API server is reached.

    Args:
        url: of the API server.
        namespace: Kubernetes' namespace.
        job: the Job's name.
        pod: this pod's name, for its events.
        account: folder with the service account's token and ca.crt.
    """

    url: str
    namespace: str
    job: str
    pod: str
    account: Path = _ACCOUNT

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> JobAddress | None:
        """From what the Job's manifest and Kubernetes put into the environment; None outside of a Job."""
        job = environment.get("GRAFT_WORKER_KUBERNETES_JOB", "")
        host = environment.get("KUBERNETES_SERVICE_HOST", "")
        url = environment.get("GRAFT_WORKER_KUBERNETES_API", "")
        if not job or not (host or url):
            return None
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        account = Path(environment.get("GRAFT_WORKER_KUBERNETES_ACCOUNT", _ACCOUNT))
        return cls(
            url=url or f"https://{f'[{host}]' if ':' in host else host}:{port}",
            namespace=_own_namespace(account),
            job=job,
            pod=environment.get("HOSTNAME", ""),
            account=account,
        )


def _own_namespace(account: Path) -> str:
    """The pod's, which lies beside its token."""
    try:
        return (account / "namespace").read_text("utf-8").strip()
    except OSError:
        return "default"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened, as `kubectl describe job` shows it. A warning is something to look at."""

    reason: str
    message: str
    time: datetime
    warning: bool = False


class JobApi:
    """Writes on one Job.

    Args:
        address: of the Job.
    """

    def __init__(self, address: JobAddress) -> None:
        self._address = address
        self._uid = ""

    async def annotate(self, annotations: Mapping[str, str]) -> None:
        """Sets annotations of the Job.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: it did not work.
        """
        address = self._address
        job = await self._call(
            "PATCH",
            f"/apis/batch/v1/namespaces/{address.namespace}/jobs/{address.job}",
            {"metadata": {"annotations": dict(annotations)}},
            "application/merge-patch+json",
        )
        self._uid = job["metadata"]["uid"]

    async def record(self, event: JobEvent) -> None:
        """Adds an event to the Job.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: it did not work.
        """
        address, time = self._address, event.time.astimezone(UTC)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "namespace": address.namespace,
            "name": address.job,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{address.job}.", "namespace": address.namespace},
            "involvedObject": about | ({"uid": self._uid} if self._uid else {}),
            "reason": event.reason,
            "message": event.message[:_MOST_MESSAGE],
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": SOURCE},
            "reportingComponent": SOURCE,
            "reportingInstance": address.pod or address.job,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        path = f"/api/v1/namespaces/{address.namespace}/events"
        await self._call("POST", path, body, "application/json")

    async def _call(self, method: str, path: str, body: Any, content_type: str) -> Any:
        # Read each time: Kubernetes renews it while the pod runs.
        token = (self._address.account / "token").read_text("utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        # Only workers in pods pay for its import.
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
            session.request(
                method, self._address.url + path, json=body, headers=headers, ssl=self._trust()
            ) as answer,
        ):
            return await answer.json()

    def _trust(self) -> ssl.SSLContext | bool:
        certificate = self._address.account / "ca.crt"
        if not certificate.is_file():
            return True
        return ssl.create_default_context(cafile=str(certificate))
