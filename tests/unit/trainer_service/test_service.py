"""The trainer over gRPC, with scripted workers in this process."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from graft.channel import open_channel, rpc_errors
from graft.common.v1 import common_pb2
from graft.errors import GraftError, Reason, from_rpc_error
from graft.trainer.v1 import trainer_service_pb2 as pb
from graft.trainer.v1 import worker_service_pb2 as worker_pb
from graft.trainer.v1.worker_service_pb2_grpc import WorkerServiceStub

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
    until,
    until_state,
    until_step,
)

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

SHORT = Script()
ENDLESS = Script(steps=100_000, step_s=0.01)


class Trainer:
    """A running trainer, its launcher and a client."""

    def __init__(
        self, server: TrainerServer, launcher: FakeLauncher, stub: TrainerServiceAsyncStub
    ) -> None:
        self.server, self.launcher, self.stub = server, launcher, stub


@asynccontextmanager
async def trainer(
    folder: Path,
    script: Script | Callable[[Launch], Script] = SHORT,
    launcher: FakeLauncher | None = None,
    **settings: Any,
) -> AsyncIterator[Trainer]:
    play = script if callable(script) else lambda _launch: script
    launcher = launcher or FakeLauncher(play)
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


async def test_a_job_goes_through_its_states_and_ends_with_a_version(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(steps=2)) as t:
        created = await t.stub.CreateJob(job_request("support-bot"))
        assert created.name.startswith("namespaces/default/jobs/support-bot-")
        assert created.state == pb.JOB_STATE_PENDING
        events = await follow(t.stub, created.name)
        assert states(events) == ["PREFLIGHT", "QUEUED", "RUNNING", "FINALIZING", "SUCCEEDED"]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [event.metrics.step for event in events if event.HasField("metrics")] == [1, 2]
        assert [e.checkpoint_step for e in events if e.HasField("checkpoint_step")] == [1, 2]
        assert any("Training begins at step 0 of 2" in event.log for event in events)
        job = await t.stub.GetJob(pb.GetJobRequest(name=created.name))
        assert job.version == "namespaces/default/adapters/bot/versions/1"
        assert (job.attempt, job.metrics.step) == (1, 2)
        assert job.create_time.ToDatetime() <= job.start_time.ToDatetime()
        assert job.start_time.ToDatetime() <= job.end_time.ToDatetime()
        assert job.spec == job_request("support-bot").spec


async def test_a_watch_resumes_after_a_sequence_and_ends_at_once_after_the_last(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        assert await follow(t.stub, name, after_sequence=3) == events[3:]
        assert await follow(t.stub, name, after_sequence=len(events)) == []


async def test_a_watch_that_began_early_gets_what_a_late_one_gets(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(steps=20, step_s=0.005)) as t:
        name = (await t.stub.CreateJob(job_request())).name
        early = await asyncio.gather(*(follow(t.stub, name) for _ in range(5)))
        late = await follow(t.stub, name)
        assert all(events == late for events in early)


async def test_a_bad_spec_is_refused_at_once(tmp_path: Path) -> None:
    async with trainer(tmp_path) as t:
        request = job_request()
        request.spec.method.lora.rank = -3
        with pytest.raises(GraftError, match=r"method\.lora\.rank") as error, rpc_errors("it"):
            await t.stub.CreateJob(request)
        assert error.value.reason is Reason.INVALID_SPEC
        listed = await t.stub.ListJobs(pb.ListJobsRequest(parent="namespaces/default"))
        assert list(listed.jobs) == []


async def test_a_job_for_more_machines_than_its_launcher_has_is_refused_at_once(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path) as t:
        request = job_request()
        request.spec.resources.nodes = 2
        with (
            pytest.raises(GraftError, match=r"resources\.nodes.*at most 1") as error,
            rpc_errors("it"),
        ):
            await t.stub.CreateJob(request)
        assert error.value.reason is Reason.INVALID_SPEC
        listed = await t.stub.ListJobs(pb.ListJobsRequest(parent="namespaces/default"))
        assert list(listed.jobs) == []


async def test_a_repeated_request_makes_one_job(tmp_path: Path) -> None:
    async with trainer(tmp_path) as t:
        first = await t.stub.CreateJob(job_request(request_id="r1"))
        again = await t.stub.CreateJob(job_request(request_id="r1"))
        assert again.name == first.name
        with pytest.raises(GraftError) as error, rpc_errors("it"):
            await t.stub.CreateJob(job_request("another", request_id="r1"))
        assert error.value.reason is Reason.REQUEST_ID_REUSED
        await follow(t.stub, first.name)
        assert len(t.launcher.launches) == 1


async def test_jobs_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with trainer(tmp_path) as t:
        names = [(await t.stub.CreateJob(job_request(f"bot-{n}"))).name for n in range(5)]
        seen, token = [], ""
        while True:
            page = await t.stub.ListJobs(
                pb.ListJobsRequest(parent="namespaces/default", page_size=2, page_token=token)
            )
            seen += [job.name for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert seen == names[::-1]
        with pytest.raises(GraftError) as error, rpc_errors("it"):
            await t.stub.ListJobs(
                pb.ListJobsRequest(parent="namespaces/default", page_token="nonsense")
            )
        assert error.value.reason is Reason.INVALID_PAGE_TOKEN


async def test_an_unknown_job_is_not_found_by_any_call(tmp_path: Path) -> None:
    name = "namespaces/default/jobs/nobody"
    async with trainer(tmp_path) as t:
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: t.stub.GetJob(pb.GetJobRequest(name=name)),
            lambda: t.stub.CancelJob(pb.CancelJobRequest(name=name)),
            lambda: follow(t.stub, name),
        )
        for call in calls:
            with pytest.raises(GraftError) as error, rpc_errors("it"):
                await call()
            assert error.value.reason is Reason.JOB_NOT_FOUND


async def test_a_running_job_is_cancelled_by_its_worker(tmp_path: Path) -> None:
    async with trainer(tmp_path, ENDLESS) as t:
        name = (await t.stub.CreateJob(job_request())).name
        await until_step(t.stub, name, 2)
        asked = await t.stub.CancelJob(pb.CancelJobRequest(name=name, reason="enough"))
        assert asked.cancel_requested
        events = await follow(t.stub, name)
        assert states(events)[-1] == "CANCELLED"
        assert events[-1].state_change.message == "enough"
        assert t.launcher.running == 0
        with pytest.raises(GraftError) as error, rpc_errors("it"):
            await t.stub.CancelJob(pb.CancelJobRequest(name=name))
        assert error.value.reason is Reason.JOB_ENDED


async def test_a_worker_that_does_not_obey_is_killed_before_the_job_is_cancelled(
    tmp_path: Path,
) -> None:
    stubborn = Script(steps=100_000, step_s=0.01, stubborn=True)
    async with trainer(tmp_path, stubborn, cancel_grace_s=0.1) as t:
        name = (await t.stub.CreateJob(job_request())).name
        await until_step(t.stub, name, 1)
        await t.stub.CancelJob(pb.CancelJobRequest(name=name))
        assert states(await follow(t.stub, name))[-1] == "CANCELLED"
        assert t.launcher.running == 0


async def test_a_waiting_job_is_cancelled_at_once_and_never_started(tmp_path: Path) -> None:
    async with trainer(tmp_path, ENDLESS, slots=1) as t:
        first = (await t.stub.CreateJob(job_request())).name
        await until_state(t.stub, first, pb.JOB_STATE_RUNNING)
        waiting = (await t.stub.CreateJob(job_request())).name
        await until_state(t.stub, waiting, pb.JOB_STATE_QUEUED)
        job = await t.stub.CancelJob(pb.CancelJobRequest(name=waiting))
        assert job.state == pb.JOB_STATE_CANCELLED
        await t.stub.CancelJob(pb.CancelJobRequest(name=first))
        await follow(t.stub, first)
        assert [launch.job for launch in t.launcher.launches] == [first]


async def test_never_more_jobs_run_than_there_are_slots_and_the_first_goes_first(
    tmp_path: Path,
) -> None:
    most = 0

    def play(_launch: Launch) -> Script:
        nonlocal most
        most = max(most, launcher.running + 1)
        return Script(steps=3, step_s=0.01, waits_at=1, waits_for=str(go_on))

    # None ends before all are there: else one slot might be enough for them.
    go_on = tmp_path / "go-on"
    launcher = FakeLauncher(play)
    async with trainer(tmp_path, launcher=launcher, slots=2) as t:
        names = [(await t.stub.CreateJob(job_request(f"bot-{n}"))).name for n in range(6)]
        await until(lambda: launcher.running == 2)
        go_on.touch()
        await asyncio.gather(*(follow(t.stub, name) for name in names))
        assert most == 2
        assert [launch.job for launch in launcher.launches] == names
        assert {launch.slots for launch in launcher.launches} == {(0,), (1,)}


async def test_a_job_of_two_slots_is_not_overtaken_by_smaller_ones(tmp_path: Path) -> None:
    async with trainer(
        tmp_path, lambda launch: ENDLESS if launch.slots == (0,) else Script(), slots=2
    ) as t:
        first = (await t.stub.CreateJob(job_request("first"))).name
        await until_state(t.stub, first, pb.JOB_STATE_RUNNING)
        large = (await t.stub.CreateJob(job_request("large", slots=2))).name
        await until_state(t.stub, large, pb.JOB_STATE_QUEUED)
        small = (await t.stub.CreateJob(job_request("small"))).name
        await until_state(t.stub, small, pb.JOB_STATE_QUEUED)
        await t.stub.CancelJob(pb.CancelJobRequest(name=first))
        await follow(t.stub, large)
        order = [launch.job for launch in t.launcher.launches]
        assert order[:2] == [first, large]
        assert t.launcher.launches[1].slots == (0, 1)
        await t.stub.CancelJob(pb.CancelJobRequest(name=small))


async def test_a_job_that_needs_more_slots_than_there_are_fails_with_the_numbers(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path, slots=2) as t:
        name = (await t.stub.CreateJob(job_request(slots=3))).name
        last = (await follow(t.stub, name))[-1].state_change
        assert last.failure_cause == common_pb2.FAILURE_CAUSE_BAD_CONFIG
        assert "needs 3 slots and this trainer has 2" in last.message


async def test_a_lost_worker_is_started_again_and_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path, Script(steps=6, lost_attempts=1)) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        assert states(events)[-1] == "SUCCEEDED"
        assert states(events).count("RUNNING") == 2
        assert any("Training begins at step 3 of 6" in event.log for event in events)
        assert events[-1].attempt == 2
        metrics = await scrape(t.server)
        assert 'graft_trainer_restarts_total{cause="lost"} 1.0' in metrics
        assert "graft_trainer_attempts_total 2.0" in metrics


async def test_a_worker_that_is_always_lost_ends_as_a_lost_node(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(lost_attempts=9)) as t:
        name = (await t.stub.CreateJob(job_request(max_restarts=1))).name
        last = (await follow(t.stub, name))[-1]
        assert last.state_change.failure_cause == common_pb2.FAILURE_CAUSE_NODE_LOST
        assert last.attempt == 2


async def test_a_silent_worker_is_killed_and_started_again(tmp_path: Path) -> None:
    def play(launch: Launch) -> Script:
        return Script(steps=1, step_s=60, silent=True) if launch.attempt == 1 else Script()

    async with trainer(tmp_path, play, worker_timeout_s=0.3) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        assert states(events)[-1] == "SUCCEEDED"
        assert any("nothing was heard from it" in e.state_change.message for e in events)
        assert t.launcher.running == 0


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_worker_whose_steps_do_not_get_on_is_ended_and_started_again(
    tmp_path: Path, stubborn: bool
) -> None:
    def play(launch: Launch) -> Script:
        hangs = Script(
            steps=100_000, step_s=0.05, heartbeat_s=0.02, stalled_s=500, stubborn=stubborn
        )
        return hangs if launch.attempt == 1 else Script()

    async with trainer(tmp_path, play, exit_grace_s=0.3) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        assert states(events)[-1] == "SUCCEEDED"
        said = next(e.state_change.message for e in events if "lost" in e.state_change.message)
        assert "has not ended in 500 s although it gives signs of life" in said
        assert "the longest before took 0.01 s" in said
        assert "the stacks of its threads are in its log" in said
        assert "goes on from the last checkpoint" in said
        assert t.launcher.running == 0


async def test_a_worker_that_works_long_between_steps_is_left_alone(tmp_path: Path) -> None:
    script = Script(steps=3, step_s=0.05, heartbeat_s=0.02)
    async with trainer(tmp_path, script, worker_stall_least_s=0.001) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        assert states(events).count("QUEUED") == 1


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (Script(exit_code=65), common_pb2.FAILURE_CAUSE_BAD_DATA),
        (Script(failure_cause=3), common_pb2.FAILURE_CAUSE_OUT_OF_MEMORY),
    ],
)
async def test_a_failure_has_its_cause_and_is_not_tried_again(
    tmp_path: Path, script: Script, cause: common_pb2.FailureCause.ValueType
) -> None:
    async with trainer(tmp_path, script) as t:
        name = (await t.stub.CreateJob(job_request())).name
        last = (await follow(t.stub, name))[-1].state_change
        assert (last.to_state, last.failure_cause) == (pb.JOB_STATE_FAILED, cause)
        assert len(t.launcher.launches) == 1


async def test_repeated_reports_change_nothing(tmp_path: Path) -> None:
    async with trainer(tmp_path, Script(steps=5, repeat=True)) as t:
        name = (await t.stub.CreateJob(job_request())).name
        events = await follow(t.stub, name)
        steps = [event.metrics.step for event in events if event.HasField("metrics")]
        assert steps == [1, 2, 3, 4, 5]
        assert states(events)[-2:] == ["FINALIZING", "SUCCEEDED"]


async def test_a_worker_with_another_token_is_refused(tmp_path: Path) -> None:
    async with trainer(tmp_path, ENDLESS) as t:
        name = (await t.stub.CreateJob(job_request())).name
        await until_step(t.stub, name, 1)
        token = t.launcher.launches[0].token
        assert await refusal(t, name, 1, "guessed") is Reason.PERMISSION_DENIED
        assert await refusal(t, name, 2, token) is Reason.PERMISSION_DENIED
        job = await t.stub.GetJob(pb.GetJobRequest(name=name))
        assert job.state == pb.JOB_STATE_RUNNING
        await t.stub.CancelJob(pb.CancelJobRequest(name=name))
        await follow(t.stub, name)
        assert await refusal(t, name, 1, token) is Reason.JOB_ENDED


async def refusal(t: Trainer, job: str, attempt: int, token: str) -> Reason:
    async def requests() -> AsyncIterator[worker_pb.SessionRequest]:
        hello = worker_pb.Hello(job=job, attempt=attempt, token=token)
        yield worker_pb.SessionRequest(hello=hello)
        # Nothing more: a refusal that meets a message on its way loses its reason (gRPC).
        await asyncio.Event().wait()

    async with open_channel(t.server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in WorkerServiceStub(channel).Session(requests()):
                pass
        return from_rpc_error(error.value).reason


async def test_a_stopped_trainer_preempts_its_workers_and_goes_on_when_started_again(
    tmp_path: Path,
) -> None:
    async with trainer(tmp_path, Script(steps=50, waits_at=5)) as t:
        name = (await t.stub.CreateJob(job_request())).name
        await until_step(t.stub, name, 3)
    assert t.launcher.running == 0
    async with trainer(tmp_path, Script(steps=50)) as t:
        events = await follow(t.stub, name)
        path = ["PREFLIGHT", "QUEUED", "RUNNING", "QUEUED", "RUNNING", "FINALIZING", "SUCCEEDED"]
        assert states(events) == path
        steps = [event.metrics.step for event in events if event.HasField("metrics")]
        assert steps == list(range(1, 51))


async def test_a_watch_is_told_to_come_back_when_the_trainer_stops(tmp_path: Path) -> None:
    async with trainer(tmp_path, ENDLESS, slots=1) as t:
        first = (await t.stub.CreateJob(job_request())).name
        await until_state(t.stub, first, pb.JOB_STATE_RUNNING)
        waiting = (await t.stub.CreateJob(job_request())).name
        await until_state(t.stub, waiting, pb.JOB_STATE_QUEUED)
        watching = asyncio.ensure_future(follow(t.stub, waiting))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(t.server.stop())
        with pytest.raises(GraftError) as error, rpc_errors("it"):
            await watching
        assert error.value.reason is Reason.UNAVAILABLE
        await stopping


async def test_two_trainers_cannot_share_a_folder(tmp_path: Path) -> None:
    async with trainer(tmp_path):
        with pytest.raises(GraftError, match="Another trainer works in"):
            async with trainer(tmp_path):
                pass


async def test_metrics_show_a_running_job_and_forget_it_when_it_ended(tmp_path: Path) -> None:
    async with trainer(tmp_path, ENDLESS) as t:
        name = (await t.stub.CreateJob(job_request())).name
        await until_step(t.stub, name, 1)
        running = await scrape(t.server)
        assert 'graft_trainer_jobs{state="RUNNING"} 1.0' in running
        assert f'graft_trainer_job_tokens_per_second{{job="{name}"}} 1000.0' in running
        assert f'graft_trainer_job_loss{{job="{name}"}}' in running
        assert "graft_trainer_queue_wait_seconds_count 1.0" in running
        await t.stub.CancelJob(pb.CancelJobRequest(name=name))
        await follow(t.stub, name)
        after = await scrape(t.server)
        assert name not in after
        assert 'graft_trainer_jobs{state="RUNNING"} 0.0' in after
        assert 'graft_trainer_jobs{state="CANCELLED"} 1.0' in after


async def scrape(server: TrainerServer) -> str:
    url = f"http://{server.metrics_address}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)
