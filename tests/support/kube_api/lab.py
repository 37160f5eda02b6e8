"""A cluster and trainers that come and go on it, as tests of the launcher use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.kubernetes import KubernetesLauncher
from services.trainer.launchers.scripted import Script
from services.trainer.server import TrainerServer
from tests.support.kube_api import Cluster, IdleRun, PodRun, ScriptedRun
from tests.support.kube_api.preflight import NoPreflight
from tests.support.kube_api.runs import Ended, Started
from tests.support.kube_api.store import Object
from tests.support.ports import kept_port
from tests.support.trainer import follow, start_trainer
from tests.support.waiting import eventually

LONG = Script(steps=2000, step_s=0.02)


class Lab:
    """A cluster, and trainers that come and go on it.

    Attributes:
        script: what pods play from now on; or make makes them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = Script()
        self.make: Callable[[Started], PodRun] | None = None
        self.policies = PodPolicies(PodPolicy(gpus_per_slot=0, keep_s=600))
        self.port = kept_port()
        self.cluster: Cluster

    def start_pod(self, started: Started) -> PodRun:
        if self.make is not None:
            return self.make(started)
        return ScriptedRun(started, self.script)

    @asynccontextmanager
    async def trainer(self, **settings: Any) -> AsyncIterator[TrainerServer]:
        """A trainer; all of a test's are at one address, as a Service's are."""
        launcher = KubernetesLauncher(self.policies, kubeconfig=self.cluster.kubeconfig)
        chosen: dict[str, Any] = {"slots": 100, "listen": f"127.0.0.1:{self.port}"} | settings
        async with start_trainer(
            self.folder, launcher=launcher, preflight=NoPreflight(), **chosen
        ) as trainer:
            yield trainer

    def work_dir(self, name: str) -> Path:
        """Where a job's checkpoints are."""
        return self.folder / "cluster/volumes/graft/work/default" / name.rpartition("/")[2]


async def states(stub: Any, name: str) -> list[str]:
    """The states that a job went through to its end."""
    events = await asyncio.wait_for(follow(stub, name), 120)
    changes = [event.state_change for event in events if event.HasField("state_change")]
    return [pb.JobState.Name(change.to_state).removeprefix("JOB_STATE_") for change in changes]


async def until_said(stub: Any, name: str, text: str) -> str:
    """Waits until a job's message has a text."""
    message = ""

    async def said() -> bool:
        nonlocal message
        message = (await stub.GetJob(pb.GetJobRequest(name=name))).message
        return text in message

    await eventually(said, f"a message with {text!r}")
    return message


def ending(started: Started, ended: Ended) -> PodRun:
    """A pod that ends at once."""
    run = IdleRun(started)
    run.end(ended)
    return run


def unschedulable(message: str) -> Object:
    """The status of a pod that no node takes."""
    found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [{**found, "message": message}]}
