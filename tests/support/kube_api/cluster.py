"""A whole cluster of the tests' own, from the API server to the pods, with a kubeconfig for real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from tests.support.kube_api.controller import JobController
from tests.support.kube_api.faults import Faults
from tests.support.kube_api.garbage import Collector
from tests.support.kube_api.kubelet import Kubelet
from tests.support.kube_api.operators import JobSetController, TrainJobController
from tests.support.kube_api.runs import PodRun, Started
from tests.support.kube_api.server import ApiServer
from tests.support.kube_api.store import Object, Store

NAMESPACE = "graft"
_TOKEN = "token-of-the-tests"


class Cluster:
    """What a test sees of it.

    Attributes:
        store: the objects; tests may change them.
        server: the API server.
        faults: what goes wrong between it and its clients.
        controller: makes pods of Jobs.
        kubelet: runs them.
        kubeconfig: for clients.
    """

    def __init__(self, folder: Path, start: Callable[[Started], PodRun]) -> None:
        self.store, self.faults = Store(), Faults()
        self.server = ApiServer(self.store, self.faults)
        self.pod_admission: Callable[[str, Object], None] = lambda _plural, _pod: None
        self.controller = JobController(self.store, lambda *given: self.pod_admission(*given))
        self.collector = Collector(self.store)
        self.operators = (JobSetController(self.store), TrainJobController(self.store))
        self.kubelet = Kubelet(self.store, folder / "volumes", start)
        self.kubeconfig = folder / "kubeconfig"

    def jobs(self) -> list[Object]:
        """All Jobs."""
        return self.store.all("jobs")

    def pods(self) -> list[Object]:
        """All pods."""
        return self.store.all("pods")

    def calls(self, method: str, plural: str = "") -> int:
        """How many calls there were."""
        return sum(one == method and f"/{plural}" in path for one, path in self.server.requests)

    def write_kubeconfig(self, url: str) -> None:
        """The way to it."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": url}}],
            "users": [{"name": "tests", "user": {"token": _TOKEN}}],
            "contexts": [
                {
                    "name": "tests",
                    "context": {"cluster": "tests", "user": "tests", "namespace": NAMESPACE},
                }
            ],
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))


@asynccontextmanager
async def kube_cluster(folder: Path, start: Callable[[Started], PodRun]) -> AsyncIterator[Cluster]:
    """A cluster that ends with the test.

    Args:
        folder: for its kubeconfig and volumes.
        start: makes what a pod runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, start)
    cluster.server.token = _TOKEN
    cluster.write_kubeconfig(await cluster.server.start())
    try:
        yield cluster
    finally:
        await cluster.kubelet.stop()
        for controller in (cluster.controller, *cluster.operators):
            await controller.stop()
        await cluster.server.stop()
