"""Starts a trainer in this process or in one of its own, and speaks to it; for tests of any service."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.channel import open_channel
from graft.trainer.v1 import job_spec_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb
from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from services.trainer.config import TrainerSettings
from services.trainer.launchers.base import Launcher
from services.trainer.preflight import Preflight
from services.trainer.server import TrainerServer
from tests.support.processes import ServiceProcess

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

STUB_WORKER = Path(__file__).with_name("stub_worker.py")
ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


@asynccontextmanager
async def start_trainer(
    data_dir: Path,
    registry_address: str = "",
    *,
    launcher: Launcher | None = None,
    preflight: Preflight | None = None,
    **settings: Any,
) -> AsyncIterator[TrainerServer]:
    """A trainer in this process, stopped (drained) at the end.

    Args:
        data_dir: its folder.
        registry_address: where workers commit their results.
        launcher: real worker processes when left out.
        preflight: the real checks when left out.
        settings: further TrainerSettings, for example slots=1.
    """
    chosen: dict[str, Any] = {"slots": 2, "drain_timeout_s": 20.0} | settings
    server = TrainerServer(
        TrainerSettings(data_dir=data_dir, registry_address=registry_address, **chosen),
        launcher,
        preflight,
    )
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


class TrainerProcess(ServiceProcess):
    """A trainer in a process of its own, with two slots unless settings say otherwise."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__("trainer", data_dir, **({"slots": "2"} | settings))


def stub_worker_command(**script: object) -> tuple[str, ...]:
    """A worker_command for workers that only play a Script (services/trainer/launchers/scripted.py)."""
    return (sys.executable, str(STUB_WORKER), json.dumps(script))


@asynccontextmanager
async def trainer_stub(address: str) -> AsyncIterator[TrainerServiceAsyncStub]:
    """A client of a trainer."""
    async with open_channel(address) as channel:
        yield TrainerServiceStub(channel)


def job_request(
    adapter: str = "bot",
    *,
    base: str = "bases/tiny",
    data: str = "data.jsonl",
    slots: int = 1,
    max_restarts: int | None = None,
    request_id: str = "",
) -> pb.CreateJobRequest:
    """A request for a small job."""
    spec = job_spec_pb2.JobSpec(
        base=job_spec_pb2.BaseSpec(source=base),
        dataset=job_spec_pb2.DatasetSpec(path=data),
        resources=job_spec_pb2.Resources(slots=slots, max_restarts=max_restarts),
        output=job_spec_pb2.Output(adapter=adapter),
    )
    return pb.CreateJobRequest(parent="namespaces/default", spec=spec, request_id=request_id)


async def follow(
    stub: TrainerServiceAsyncStub, name: str, after_sequence: int = 0
) -> list[pb.JobEvent]:
    """All events of a job, once it has ended."""
    request = pb.WatchJobRequest(name=name, after_sequence=after_sequence)
    return [event async for event in stub.WatchJob(request)]


async def until_state(
    stub: TrainerServiceAsyncStub, name: str, state: pb.JobState.ValueType
) -> None:
    """Follows a job until it reaches a state; fails when it ends in another one."""
    async for event in stub.WatchJob(pb.WatchJobRequest(name=name)):
        reached = event.state_change.to_state
        if reached == state:
            return
        assert reached not in ENDED, event
    raise AssertionError(f"{name} ended")


async def until_step(stub: TrainerServiceAsyncStub, name: str, step: int) -> None:
    """Follows a job until it has reported metrics of a step."""
    async for event in stub.WatchJob(pb.WatchJobRequest(name=name)):
        if event.metrics.step >= step:
            return
    raise AssertionError(f"{name} ended before step {step}")


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Waits for a condition; fails when it does not come about in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
