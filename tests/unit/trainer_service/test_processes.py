"""The trainer as a process with workers as processes: what happens when either is killed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from graft.common.v1 import common_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from tests.support.ports import kept_port
from tests.support.processes import worker_processes
from tests.support.trainer import (
    TrainerProcess,
    follow,
    job_request,
    stub_worker_command,
    trainer_stub,
    until,
    until_step,
)

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

STATE = pb.JobState.Name


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """The trainer's folder; what a failed test leaves running is ended."""
    yield tmp_path
    for process in worker_processes(tmp_path):
        process.kill()


def start(folder: Path, settings: dict[str, str] | None = None, **script: object) -> TrainerProcess:
    command = json.dumps(stub_worker_command(**script))
    return TrainerProcess(folder, worker_command=command, **(settings or {}))


async def create(stub: TrainerServiceAsyncStub, base: Path, data: Path) -> str:
    return (await stub.CreateJob(job_request(base=str(base), data=str(data)))).name


def states(events: list[pb.JobEvent]) -> list[str]:
    return [
        STATE(event.state_change.to_state).removeprefix("JOB_STATE_")
        for event in events
        if event.HasField("state_change")
    ]


def steps(events: list[pb.JobEvent]) -> list[int]:
    return [event.metrics.step for event in events if event.HasField("metrics")]


async def test_a_killed_worker_is_started_again_and_the_job_succeeds(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    with start(folder, steps=6, lost_attempts=1) as trainer:
        await trainer.ready()
        async with trainer_stub(trainer.address) as stub:
            name = await create(stub, base_folder, data_file)
            events = await follow(stub, name)
            assert states(events)[-1] == "SUCCEEDED"
            assert events[-1].attempt == 2
            assert any("SIGKILL" in event.state_change.message for event in events)
            assert any("begins at step 3 of 6" in event.log for event in events)


async def test_a_killed_trainer_finds_its_running_job_and_it_finishes_exactly_once(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    listen = f"127.0.0.1:{kept_port()}"
    held = {"waits_at": 5, "waits_for": str(folder / "go-on")}
    with start(folder, {"slots": "1", "listen": listen}, steps=100, **held) as first:
        await first.ready()
        address = first.address
        async with trainer_stub(address) as stub:
            name = await create(stub, base_folder, data_file)
            await until_step(stub, name, 3)
        (worker,) = worker_processes(folder)
        first.kill()
        assert worker.is_running()
    with start(folder, {"slots": "1", "listen": address}, steps=2) as second:
        await second.ready()
        async with trainer_stub(address) as stub:
            next_name = await create(stub, base_folder, data_file)
            (folder / "go-on").touch()
            events = await follow(stub, name)
            assert states(events) == ["PREFLIGHT", "QUEUED", "RUNNING", "FINALIZING", "SUCCEEDED"]
            assert steps(events) == list(range(1, 101))
            assert {event.attempt for event in events} == {0, 1}
            await follow(stub, next_name)
            ended = (await stub.GetJob(pb.GetJobRequest(name=name))).end_time
            begun = (await stub.GetJob(pb.GetJobRequest(name=next_name))).start_time
            assert begun.ToDatetime() >= ended.ToDatetime()
        await until(lambda: worker_processes(folder) == [])


async def test_a_cancellation_outlives_a_killed_trainer(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    listen = {"listen": f"127.0.0.1:{kept_port()}"}
    with start(folder, listen, steps=10_000, step_s=0.02, stubborn=True) as first:
        await first.ready()
        address = first.address
        async with trainer_stub(address) as stub:
            name = await create(stub, base_folder, data_file)
            await until_step(stub, name, 1)
            await stub.CancelJob(pb.CancelJobRequest(name=name))
        first.kill()
    with start(folder, {"listen": address, "cancel_grace_s": "0.1"}) as second:
        await second.ready()
        async with trainer_stub(address) as stub:
            assert states(await follow(stub, name))[-1] == "CANCELLED"
            assert worker_processes(folder) == []


async def test_a_job_whose_worker_died_with_the_trainer_is_started_again(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    with start(folder, steps=100, waits_at=5) as first:
        await first.ready()
        async with trainer_stub(first.address) as stub:
            name = await create(stub, base_folder, data_file)
            await until_step(stub, name, 3)
        first.kill()
        for worker in worker_processes(folder):
            worker.kill()
        await until(lambda: worker_processes(folder) == [])
    with start(folder, steps=100) as second:
        await second.ready()
        async with trainer_stub(second.address) as stub:
            events = await follow(stub, name)
            assert states(events)[-1] == "SUCCEEDED"
            assert events[-1].attempt == 2
            assert any(
                "was gone when the trainer started" in e.state_change.message for e in events
            )


async def test_a_trainer_that_comes_back_elsewhere_has_its_workers_start_again_with_the_new_address(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    with start(folder, steps=10_000, step_s=0.02) as first:
        await first.ready()
        async with trainer_stub(first.address) as stub:
            name = await create(stub, base_folder, data_file)
            await until_step(stub, name, 3)
        first.kill()
    with start(folder, steps=100) as second:
        await second.ready()
        assert second.address != first.address
        async with trainer_stub(second.address) as stub:
            events = await follow(stub, name)
            assert states(events)[-1] == "SUCCEEDED"
            assert any("Preempted" in event.state_change.message for event in events)


async def test_sigterm_ends_the_trainer_with_0_and_leaves_no_process(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    with start(folder, steps=10_000, step_s=0.02) as trainer:
        await trainer.ready()
        async with trainer_stub(trainer.address) as stub:
            names = [await create(stub, base_folder, data_file) for _ in range(2)]
            for name in names:
                await until_step(stub, name, 2)
            # This one waits, whichever is looked through first.
            names.append(await create(stub, base_folder, data_file))
        assert len(worker_processes(folder)) == 2
        assert await trainer.stop() == 0
        assert worker_processes(folder) == []
    with start(folder, steps=20) as again:
        await again.ready()
        async with trainer_stub(again.address) as stub:
            for name in names:
                assert states(await follow(stub, name))[-1] == "SUCCEEDED"
                assert (await stub.GetJob(pb.GetJobRequest(name=name))).attempt <= 2


async def test_a_cancelled_job_leaves_no_process(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    with start(folder, steps=10_000, step_s=0.02) as trainer:
        await trainer.ready()
        async with trainer_stub(trainer.address) as stub:
            name = await create(stub, base_folder, data_file)
            await until_step(stub, name, 2)
            await stub.CancelJob(pb.CancelJobRequest(name=name))
            assert states(await follow(stub, name))[-1] == "CANCELLED"
            assert worker_processes(folder) == []


async def test_a_job_cancelled_before_its_worker_speaks_ends_at_once(
    folder: Path, base_folder: Path, data_file: Path
) -> None:
    sleeper = json.dumps(["sh", "-c", "while :; do sleep 600; done"])
    with TrainerProcess(folder, worker_command=sleeper) as trainer:
        await trainer.ready()
        async with trainer_stub(trainer.address) as stub:
            name = await create(stub, base_folder, data_file)
            await until(lambda: worker_processes(folder) != [])
            await stub.CancelJob(pb.CancelJobRequest(name=name))
            assert states(await follow(stub, name))[-1] == "CANCELLED"
            assert worker_processes(folder) == []


async def test_bad_data_fails_the_job_before_any_worker_starts(
    folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    with start(folder) as trainer:
        await trainer.ready()
        async with trainer_stub(trainer.address) as stub:
            name = await create(stub, base_folder, bad)
            events = await follow(stub, name)
            assert states(events) == ["PREFLIGHT", "FAILED"]
            last = events[-1].state_change
            assert last.failure_cause == common_pb2.FAILURE_CAUSE_BAD_DATA
            assert "row 2" in last.message
