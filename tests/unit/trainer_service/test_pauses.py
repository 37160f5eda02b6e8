"""Pausing, resuming and retrying jobs over gRPC, with scripted workers in this process."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from graft.channel import rpc_errors
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.base import Launch
from services.trainer.launchers.fake import FakeLauncher
from services.trainer.launchers.scripted import Script
from services.trainer.preflight import NoPreflight
from services.trainer.server import TrainerServer
from tests.support.trainer import (
    follow,
    job_request,
    start_trainer,
    trainer_stub,
    until_state,
    until_step,
)

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

STEPS = 30
Play = Callable[[Launch], Script]


def steady(launch: Launch) -> Script:
    """A first attempt that no pause comes too late for, and quick ones after it."""
    return Script(steps=STEPS, waits_at=5 if launch.attempt == 1 else 0)


def held(go_on: Path, stubborn: bool = False) -> Script:
    """Gets no further than step 5 before a file is there."""
    return Script(steps=STEPS, waits_at=5, waits_for=str(go_on), stubborn=stubborn)


class Trainer:
    """A running trainer, its launcher and one job of it."""

    def __init__(
        self, server: TrainerServer, launcher: FakeLauncher, stub: TrainerServiceAsyncStub
    ) -> None:
        self.server, self.launcher, self.stub = server, launcher, stub
        self.job = ""

    async def create(self) -> str:
        """Another job."""
        self.job = (await self.stub.CreateJob(job_request())).name
        return self.job

    async def get(self) -> pb.Job:
        return await self.stub.GetJob(pb.GetJobRequest(name=self.job))

    async def pause(self, reason: str = "the night is over") -> pb.Job:
        return await self.stub.PauseJob(pb.PauseJobRequest(name=self.job, reason=reason))

    async def resume(self) -> pb.Job:
        return await self.stub.ResumeJob(pb.ResumeJobRequest(name=self.job))

    async def retry(self) -> pb.Job:
        return await self.stub.RetryJob(pb.RetryJobRequest(name=self.job))

    async def cancel(self) -> pb.Job:
        return await self.stub.CancelJob(pb.CancelJobRequest(name=self.job, reason="enough"))

    async def paused(self) -> None:
        """Waits until it is."""
        await until_state(self.stub, self.job, pb.JOB_STATE_PAUSED)

    async def succeeded(self) -> list[pb.JobEvent]:
        events = await follow(self.stub, self.job)
        assert states(events)[-1] == "SUCCEEDED", events[-1]
        return events


@asynccontextmanager
async def trainer(folder: Path, script: Script | Play, **settings: Any) -> AsyncIterator[Trainer]:
    play = script if callable(script) else lambda _launch: script
    launcher = FakeLauncher(play)
    async with (
        start_trainer(folder, launcher=launcher, preflight=NoPreflight(), **settings) as server,
        trainer_stub(server.address) as stub,
    ):
        yield Trainer(server, launcher, stub)


def states(events: list[pb.JobEvent]) -> list[str]:
    return [
        pb.JobState.Name(event.state_change.to_state).removeprefix("JOB_STATE_")
        for event in events
        if event.HasField("state_change")
    ]


def steps(events: list[pb.JobEvent]) -> list[int]:
    return [event.metrics.step for event in events if event.HasField("metrics")]


async def refused(call: Any) -> GraftError:
    with pytest.raises(GraftError) as error, rpc_errors("it"):
        await call
    return error.value


async def test_a_paused_job_frees_its_slot_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def play(launch: Launch) -> Script:
        return steady(launch) if launch.job == t.launcher.launches[0].job else Script()

    async with trainer(tmp_path, play, slots=1) as t:
        first = await t.create()
        await until_step(t.stub, first, 3)
        asked = await t.pause()
        assert (asked.state, asked.pause_requested) == (pb.JOB_STATE_RUNNING, True)
        await t.paused()
        job = await t.get()
        assert (job.message, job.pause_requested) == ("the night is over", False)
        assert job.checkpoint_step >= 3
        assert t.launcher.running == 0
        await t.create()  # The only slot is free.
        await t.succeeded()
        t.job = first
        assert (await t.resume()).state == pb.JOB_STATE_QUEUED
        events = await t.succeeded()
        assert steps(events) == list(range(1, STEPS + 1))
        assert events[-1].attempt == 2


async def test_pausing_twice_and_resuming_twice_is_as_once(tmp_path: Path) -> None:
    async with trainer(tmp_path, steady) as t:
        await until_step(t.stub, await t.create(), 3)
        await t.pause()
        await t.pause("again")
        await t.paused()
        assert (await t.pause("and again")).message == "the night is over"
        await t.resume()
        await t.resume()
        events = await t.succeeded()
        assert states(events).count("PAUSED") == 1
        assert states(events).count("RUNNING") == 2
        assert steps(events) == list(range(1, STEPS + 1))


async def test_a_job_that_waits_is_paused_at_once_and_keeps_its_number_of_attempts(
    tmp_path: Path,
) -> None:
    go_on = tmp_path / "go-on"
    async with trainer(tmp_path, held(go_on), slots=1) as t:
        running = await t.create()
        await until_state(t.stub, running, pb.JOB_STATE_RUNNING)
        waiting = await t.create()
        await until_state(t.stub, waiting, pb.JOB_STATE_QUEUED)
        assert (await t.pause()).state == pb.JOB_STATE_PAUSED
        go_on.touch()
        await follow(t.stub, running)
        assert [launch.job for launch in t.launcher.launches] == [running]
        assert (await t.resume()).state == pb.JOB_STATE_PENDING
        assert (await t.succeeded())[-1].attempt == 1


async def test_a_pause_that_is_on_its_way_can_be_taken_back(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    async with trainer(tmp_path, held(go_on, stubborn=True)) as t:
        await until_step(t.stub, await t.create(), 2)
        await t.pause()
        assert not (await t.resume()).pause_requested
        go_on.touch()
        assert "PAUSED" not in states(await t.succeeded())


async def test_a_worker_that_does_not_pause_in_time_is_killed_and_nothing_counts_as_lost(
    tmp_path: Path,
) -> None:
    def play(launch: Launch) -> Script:
        return replace(steady(launch), stubborn=True)

    async with trainer(tmp_path, play, pause_grace_s=0.05) as t:
        await until_step(t.stub, await t.create(), 2)
        await t.pause()
        await t.paused()
        assert t.launcher.running == 0
        await t.resume()
        events = await t.succeeded()
        assert not any("was lost" in event.state_change.message for event in events)


async def test_a_pause_while_the_result_is_committed_waits_with_it_or_comes_too_late(
    tmp_path: Path,
) -> None:
    def play(launch: Launch) -> Script:
        return Script(steps=2, waits_at=2 if launch.attempt == 1 else 0)

    async with trainer(tmp_path, play) as t:
        await until_state(t.stub, await t.create(), pb.JOB_STATE_FINALIZING)
        await t.pause()
        await t.paused()
        assert (await t.get()).stage == stages.JOB_STAGE_UPLOADING
        assert "makes nothing again" in (await t.resume()).message
        events = await t.succeeded()
        assert steps(events) == [1, 2]
    go_on = tmp_path / "go-on"
    deaf = Script(steps=2, waits_at=2, waits_for=str(go_on), stubborn=True)
    async with trainer(tmp_path / "late", deaf) as t:
        await until_state(t.stub, await t.create(), pb.JOB_STATE_FINALIZING)
        await t.pause()
        go_on.touch()
        events = await t.succeeded()
        assert "PAUSED" not in states(events)
        assert not (await t.get()).pause_requested


async def test_a_job_can_be_cancelled_while_it_is_paused_and_while_it_pauses(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path, steady) as t:
        await until_step(t.stub, await t.create(), 2)
        await t.pause()
        await t.cancel()
        assert states(await follow(t.stub, t.job))[-1] == "CANCELLED"
        await until_step(t.stub, await t.create(), 2)
        await t.pause()
        await t.paused()
        assert (await t.cancel()).state == pb.JOB_STATE_CANCELLED
        for call in (t.pause, t.resume, t.retry):
            error = await refused(call())
            assert error.reason is Reason.JOB_ENDED
            assert error.next_step


async def test_a_job_that_is_being_cancelled_is_not_paused(tmp_path: Path) -> None:
    stubborn = Script(steps=10_000, step_s=0.01, stubborn=True)
    async with trainer(tmp_path, stubborn, cancel_grace_s=0.3) as t:
        await until_step(t.stub, await t.create(), 1)
        await t.cancel()
        assert (await refused(t.pause())).reason is Reason.JOB_ENDED
        assert states(await follow(t.stub, t.job))[-1] == "CANCELLED"


async def test_a_trainer_that_stops_while_a_job_pauses_leaves_it_paused(tmp_path: Path) -> None:
    stubborn = Script(steps=10_000, step_s=0.01, stubborn=True)
    async with trainer(tmp_path, stubborn, drain_timeout_s=0.2) as t:
        await until_step(t.stub, name := await t.create(), 2)
        await t.pause()
    async with trainer(tmp_path, Script(steps=STEPS)) as t:
        t.job = name
        job = await t.get()
        assert (job.state, job.message) == (pb.JOB_STATE_PAUSED, "the night is over")
        assert t.launcher.launches == []
        await t.resume()
        await t.succeeded()


async def test_a_paused_job_goes_on_where_its_folder_is_taken_to(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with trainer(here, steady) as t:
        await until_step(t.stub, name := await t.create(), 3)
        await t.pause()
        await t.paused()
    shutil.copytree(here, there)  # What a shared volume, or a disk that moves, brings along.
    shutil.rmtree(here)
    async with trainer(there, steady) as t:
        t.job = name
        await t.resume()
        assert steps(await t.succeeded()) == list(range(1, STEPS + 1))


async def test_a_worker_that_pauses_by_itself_says_why_and_waits_for_somebody(
    tmp_path: Path,
) -> None:
    def play(launch: Launch) -> Script:
        return Script(steps=6, exit_code=74 if launch.attempt == 1 else 0)

    async with trainer(tmp_path, play) as t:
        await t.create()
        await t.paused()
        job = await t.get()
        assert "stopped by itself" in job.message
        assert (job.checkpoint_step, job.attempt) == (3, 1)
        await t.resume()
        assert steps(await t.succeeded()) == [1, 2, 3, 4, 5, 6]


async def test_a_failed_upload_is_tried_again_without_any_training(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(steps=3, failed_uploads=1)) as t:
        events = await follow(t.stub, await t.create())
        assert states(events)[-1] == "FAILED"
        job = await t.get()
        assert job.stage == stages.JOB_STAGE_UPLOADING
        assert job.message == "the registry is away"
        taken_up = await t.retry()
        assert taken_up.state == pb.JOB_STATE_QUEUED
        assert not taken_up.HasField("end_time")
        await t.retry()  # It waits or runs: nothing more happens.
        events = await t.succeeded()
        assert steps(events) == [1, 2, 3]
        reached = [event.stage for event in events if event.HasField("stage")]
        assert reached == [
            stages.JOB_STAGE_TRAINING,
            stages.JOB_STAGE_UPLOADING,
            stages.JOB_STAGE_TRAINING,
            stages.JOB_STAGE_UPLOADING,
            stages.JOB_STAGE_COMMITTING,
        ]
        assert (await t.get()).stage == stages.JOB_STAGE_UNSPECIFIED
        assert (await refused(t.retry())).reason is Reason.JOB_ENDED


async def test_a_lost_job_that_is_retried_has_all_its_restarts_again(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(steps=8, lost_attempts=2)) as t:
        t.job = (await t.stub.CreateJob(job_request(max_restarts=1))).name
        assert states(await follow(t.stub, t.job))[-1] == "FAILED"
        await t.retry()
        assert (await t.succeeded())[-1].attempt == 3


async def test_the_sdk_pauses_resumes_and_retries(tmp_path: Path) -> None:
    async with trainer(tmp_path, steady) as t:
        await until_step(t.stub, name := await t.create(), 2)
        async with Client(trainer=t.server.address) as client:
            handle = client.job(name)
            assert (await handle.pause("later")).pause_requested
            await t.paused()
            assert (await handle.get()).state == "PAUSED"
            assert (await handle.retry()).state == "QUEUED"
            assert (await handle.wait()).version
