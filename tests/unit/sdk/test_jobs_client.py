"""Training through the client, against a trainer that does what the test says."""

from __future__ import annotations

import asyncio

import graft
import pytest
from graft.common.v1.common_pb2 import FAILURE_CAUSE_BAD_DATA
from graft.trainer.v1 import trainer_service_pb2 as pb

from tests.support.fakes import FakeTrainer

_VERSION = "namespaces/default/adapters/bot/versions/1"


async def _start(client: graft.Client) -> graft.JobHandle:
    return await client.train(data="/rows.jsonl", base="org/model", adapter="bot", rank=8)


async def test_a_job_is_created_with_its_spec_and_an_own_request_id(
    client: graft.Client, trainer: FakeTrainer
) -> None:
    job = await _start(client)
    assert job.name == "namespaces/default/jobs/job-1"
    assert trainer.requests[0].spec.method.lora.rank == 8
    await _start(client)
    assert trainer.requests[0].request_id != trainer.requests[1].request_id != ""


async def test_waiting_for_a_job_answers_with_its_version(
    client: graft.Client, trainer: FakeTrainer
) -> None:
    job = await _start(client)
    waiting = asyncio.create_task(job.wait())
    await trainer.change_state(pb.JOB_STATE_RUNNING)
    await trainer.change_state(pb.JOB_STATE_SUCCEEDED, version=_VERSION)
    done = await waiting
    assert (done.state, done.version) == (graft.JobState.SUCCEEDED, _VERSION)


async def test_waiting_for_a_job_that_fails_raises_its_cause(
    client: graft.Client, trainer: FakeTrainer
) -> None:
    job = await _start(client)
    await trainer.change_state(
        pb.JOB_STATE_FAILED, message="row 2", failure_cause=FAILURE_CAUSE_BAD_DATA
    )
    with pytest.raises(graft.JobFailedError, match="row 2") as caught:
        await job.wait()
    assert caught.value.job.failure_cause is graft.FailureCause.BAD_DATA
    assert (await job.wait(check=False)).state is graft.JobState.FAILED


async def test_events_go_on_where_a_restart_of_the_trainer_broke_them(
    client: graft.Client, trainer: FakeTrainer
) -> None:
    job = await _start(client)
    await trainer.change_state(pb.JOB_STATE_RUNNING)
    for step in (1, 2, 3):
        await trainer.report_step(step, 3, 1 / step)
    await trainer.change_state(pb.JOB_STATE_SUCCEEDED, version=_VERSION)
    trainer.break_after = 2
    events = [event async for event in job.events()]
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [event.metrics.step for event in events if event.metrics] == [1, 2, 3]
    assert trainer.watches == [0, 2]


async def test_a_job_that_does_not_exist_is_not_waited_for(client: graft.Client) -> None:
    with pytest.raises(graft.NotFoundError, match="no job"):
        await client.job("none").wait()


async def test_a_trainer_that_stays_away_is_an_error_and_no_endless_wait() -> None:
    async with graft.Client(trainer="127.0.0.1:1", patience_s=0.0) as client:
        with pytest.raises(graft.UnavailableError, match="the trainer cannot be reached") as caught:
            await client.job("job-1").wait()
    assert "graft up" in caught.value.next_step


async def test_cancelling_twice_says_that_it_has_ended(client: graft.Client) -> None:
    job = await _start(client)
    assert (await job.cancel("enough")).state is graft.JobState.CANCELLED
    with pytest.raises(graft.ConflictError) as caught:
        await job.cancel()
    assert caught.value.reason is graft.Reason.JOB_ENDED


async def test_jobs_are_listed_over_several_pages_up_to_the_limit(client: graft.Client) -> None:
    for _ in range(5):
        await _start(client)
    names = [job.name.rpartition("/")[2] for job in await client.jobs.list()]
    assert names == ["job-5", "job-4", "job-3", "job-2", "job-1"]
    assert len(await client.jobs.list(limit=3)) == 3
