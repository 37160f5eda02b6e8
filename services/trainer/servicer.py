"""The RPCs of TrainerService and WorkerService: each reads its request, does one thing, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from graft.errors import GraftError, Reason
from graft.trainer.v1 import methods_pb2, plan_pb2, preflight_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb
from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceServicer
from graft.trainer.v1.worker_service_pb2 import SessionRequest, SessionResponse
from graft.trainer.v1.worker_service_pb2_grpc import WorkerServiceServicer

from services.common.interceptors import Context
from services.trainer import convert, describe, lifecycle
from services.trainer.jobs import Report
from services.trainer.journal import Journal
from services.trainer.plan.process import Planning
from services.trainer.preflight.process import Surveyor
from services.trainer.scheduler import Scheduler
from services.trainer.stall import Beat
from services.trainer.supervisor import Supervisor


class TrainerServicer(TrainerServiceServicer):
    """Jobs, for people and programs.

    Args:
        journal: where jobs are.
        scheduler: stops the check of a cancelled job.
        supervisor: stops the worker of a cancelled job.
        surveyor: looks at data.
        plans: makes plans and recommendations.
        wake: tells the scheduler of a new job.
        max_nodes: machines that a job may use.
    """

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        supervisor: Supervisor,
        surveyor: Surveyor,
        plans: Planning,
        wake: asyncio.Event,
        max_nodes: int,
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._supervisor = supervisor
        self._surveyor = surveyor
        self._plans = plans
        self._wake = wake
        self._max_nodes = max_nodes

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.Job:
        """Stores a job and answers at once."""
        job, key = convert.new_job(request, self._max_nodes)
        stored, _new = await self._journal.create(job, key)
        self._wake.set()
        return convert.job(stored)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        """Gets one job."""
        return convert.job(await self._journal.store.get(convert.checked_job_name(request.name)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """Lists a namespace's jobs, newest first."""
        namespace = convert.parent_namespace(request.parent)
        size = convert.page_size(request.page_size)
        before = convert.page_start(request.page_token, namespace)
        found = await self._journal.store.page(namespace, size + 1, before)
        token = convert.page_token(namespace, found[size - 1]) if len(found) > size else ""
        return pb.ListJobsResponse(
            jobs=[convert.job(job) for job in found[:size]], next_page_token=token
        )

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        """Ends a waiting job at once, and tells the worker of a running one to stop."""
        name = convert.checked_job_name(request.name)
        changed = await self._journal.change(name, lifecycle.cancel(request.reason))
        self._scheduler.forget(name)
        self._supervisor.cancel(name, request.reason)
        return convert.job(changed.job)

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.JobEvent]:
        """Streams a job's events and ends with the last one."""
        name = convert.checked_job_name(request.name)
        async for event in self._journal.watch(name, request.after_sequence):
            yield convert.event(event)

    async def ValidateJob(
        self, request: preflight_pb2.ValidateJobRequest, context: Context
    ) -> AsyncIterator[preflight_pb2.ValidateJobResponse]:
        """Looks at a job's data; ends with the report."""
        spec_json, examples = convert.survey_request(request)
        async with aclosing(self._surveyor.survey(spec_json, examples)) as updates:
            async for update in updates:
                yield convert.survey_update(update)

    async def PlanJob(
        self, request: plan_pb2.PlanJobRequest, context: Context
    ) -> AsyncIterator[plan_pb2.PlanJobResponse]:
        """Plans a job; ends with the plan."""
        spec_json, accelerator = convert.plan_request(request)
        made = self._plans.run("plan", spec_json, accelerator, probe=not request.no_probe)
        async with aclosing(made) as updates:
            async for update in updates:
                yield convert.plan_update(update)

    async def RecommendJob(
        self, request: plan_pb2.RecommendJobRequest, context: Context
    ) -> AsyncIterator[plan_pb2.RecommendJobResponse]:
        """Chooses for a base, data and a machine; ends with the recommendation."""
        spec_json, accelerator = convert.plan_request(request)
        made = self._plans.run("recommend", spec_json, accelerator, probe=False)
        async with aclosing(made) as updates:
            async for update in updates:
                yield convert.recommend_update(update)

    async def ListMethods(
        self, request: methods_pb2.ListMethodsRequest, context: Context
    ) -> methods_pb2.ListMethodsResponse:
        """Lists methods, objectives and chat templates."""
        return describe.list_methods()


class WorkerServicer(WorkerServiceServicer):
    """Sessions, for workers."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def Session(
        self, request_iterator: AsyncIterator[SessionRequest], context: Context
    ) -> AsyncIterator[SessionResponse]:
        """Reports up, acknowledgements and commands down."""
        first = await anext(request_iterator, None)
        if first is None:
            raise GraftError(
                Reason.INVALID_REQUEST,
                "The session ended before it began",
                next_step="Send hello with the job, the attempt and its token first.",
            )
        reports = _reports(request_iterator)
        async for answer in self._supervisor.session(convert.hello(first), reports):
            yield convert.answer(answer)


async def _reports(
    requests: AsyncIterator[SessionRequest],
) -> AsyncIterator[tuple[int, Report | Beat]]:
    async for request in requests:
        yield convert.report(request)
