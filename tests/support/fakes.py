"""Small servicers that answer as the contract says, for what real services cannot be made to do on cue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as inference_pb2
from graft.inference.v1 import inference_service_pb2_grpc as inference_grpc
from graft.inference.v1 import rollout_pb2
from graft.trainer.v1 import trainer_service_pb2 as trainer_pb2
from graft.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from prometheus_client import CollectorRegistry

from services.common.interceptors import CallInterceptor
from services.common.metrics import RpcMetrics

ENDED = (
    trainer_pb2.JOB_STATE_SUCCEEDED,
    trainer_pb2.JOB_STATE_FAILED,
    trainer_pb2.JOB_STATE_CANCELLED,
)


class FakeTrainer(trainer_grpc.TrainerServiceServicer):
    """One trainer whose jobs do what the test says, by change_state() and report_step().

    Attributes:
        requests: every CreateJobRequest.
        watches: after which sequence each watch was asked for.
        break_after: a watch is torn down once, as by a restart, after so many events.
    """

    def __init__(self) -> None:
        self.requests: list[trainer_pb2.CreateJobRequest] = []
        self.jobs: dict[str, trainer_pb2.Job] = {}
        self.events: list[trainer_pb2.JobEvent] = []
        self.break_after: int | None = None
        self.watches: list[int] = []
        self._changed = asyncio.Condition()

    async def change_state(self, state: trainer_pb2.JobState.ValueType, **fields: Any) -> None:
        """The newest job gets to a state."""
        job = list(self.jobs.values())[-1]
        change = trainer_pb2.StateChange(from_state=job.state, to_state=state, **fields)
        job.state, job.version = state, change.version
        job.message, job.failure_cause = change.message, change.failure_cause
        await self._append(trainer_pb2.JobEvent(state_change=change))

    async def report_step(self, step: int, total: int, loss: float) -> None:
        """The newest job reports figures."""
        event = trainer_pb2.JobEvent(attempt=1)
        event.metrics.step, event.metrics.total_steps = step, total
        event.metrics.loss, event.metrics.tokens_per_second = loss, 1234.0
        await self._append(event)

    async def _append(self, event: trainer_pb2.JobEvent) -> None:
        async with self._changed:
            event.sequence = len(self.events) + 1
            self.events.append(event)
            self._changed.notify_all()

    async def CreateJob(
        self, request: trainer_pb2.CreateJobRequest, context: Any
    ) -> trainer_pb2.Job:
        self.requests.append(request)
        name = f"{request.parent}/jobs/job-{len(self.requests)}"
        self.jobs[name] = trainer_pb2.Job(
            name=name, spec=request.spec, state=trainer_pb2.JOB_STATE_PENDING
        )
        return self.jobs[name]

    async def GetJob(self, request: trainer_pb2.GetJobRequest, context: Any) -> trainer_pb2.Job:
        return self._job(request.name)

    async def ListJobs(
        self, request: trainer_pb2.ListJobsRequest, context: Any
    ) -> trainer_pb2.ListJobsResponse:
        newest_first = list(self.jobs.values())[::-1]
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size, 2)
        token = str(end) if end < len(newest_first) else ""
        return trainer_pb2.ListJobsResponse(jobs=newest_first[begin:end], next_page_token=token)

    async def CancelJob(
        self, request: trainer_pb2.CancelJobRequest, context: Any
    ) -> trainer_pb2.Job:
        job = self._job(request.name)
        if job.state in ENDED:
            raise GraftError(Reason.JOB_ENDED, f"{job.name} has ended")
        await self.change_state(trainer_pb2.JOB_STATE_CANCELLED, message=request.reason)
        return job

    async def PauseJob(self, request: trainer_pb2.PauseJobRequest, context: Any) -> trainer_pb2.Job:
        await self.change_state(trainer_pb2.JOB_STATE_PAUSED, message=request.reason)
        return self._job(request.name)

    async def ResumeJob(
        self, request: trainer_pb2.ResumeJobRequest, context: Any
    ) -> trainer_pb2.Job:
        await self.change_state(trainer_pb2.JOB_STATE_QUEUED)
        return self._job(request.name)

    async def RetryJob(self, request: trainer_pb2.RetryJobRequest, context: Any) -> trainer_pb2.Job:
        await self.change_state(trainer_pb2.JOB_STATE_QUEUED)
        return self._job(request.name)

    async def WatchJob(
        self, request: trainer_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[trainer_pb2.JobEvent]:
        job, sent = self._job(request.name), request.after_sequence
        self.watches.append(sent)
        while True:
            for event in self.events[sent:]:
                if self.break_after == sent:
                    self.break_after = None
                    raise GraftError(Reason.UNAVAILABLE, "the trainer restarts")
                sent += 1
                yield event
            if job.state in ENDED:
                return
            async with self._changed:
                while len(self.events) <= sent:
                    await self._changed.wait()

    def ValidateJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError

    def PlanJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError

    def RecommendJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def ListMethods(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def _job(self, name: str) -> trainer_pb2.Job:
        if name not in self.jobs:
            raise GraftError(Reason.JOB_NOT_FOUND, f"There is no job {name}")
        return self.jobs[name]


class PartOfInference(inference_grpc.InferenceServiceServicer):
    """What a fake does not answer is UNIMPLEMENTED, as of a server that does not know it."""

    async def Embed(self, request: Any, context: Any) -> Any:
        await self._unknown(context)

    async def CountTokens(self, request: Any, context: Any) -> Any:
        await self._unknown(context)

    async def GetBase(self, request: Any, context: Any) -> Any:
        await self._unknown(context)

    async def SwitchBase(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._unknown(context)
        yield

    async def CancelBaseSwitch(self, request: Any, context: Any) -> Any:
        await self._unknown(context)

    async def _unknown(self, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a fake does not know it")


class FakeInference(PartOfInference):
    """Answers with the words of the prompt, one per message of a stream; "endless" never ends.

    Attributes:
        requests: every request for text.
        aborted: set when a caller left a stream.
    """

    def __init__(self) -> None:
        self.requests: list[inference_pb2.GenerateRequest | inference_pb2.ChatRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.aborted = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> inference_pb2.GenerateResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return _whole(request.prompt)

    async def Chat(self, request: Any, context: Any) -> inference_pb2.GenerateResponse:
        self.requests.append(request)
        return _whole(request.messages[-1].content)

    async def StreamGenerate(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        async for answer in self._stream(request.model, request.prompt):
            yield answer

    async def StreamChat(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        async for answer in self._stream(request.model, request.messages[-1].content):
            yield answer

    async def _stream(self, model: str, text: str) -> AsyncIterator[inference_pb2.GenerateResponse]:
        if model == "nobody":
            raise GraftError(
                Reason.MODEL_NOT_FOUND, "There is no model nobody", next_step="See `graft models`."
            )
        words = text.split()
        try:
            while words:
                for index, word in enumerate(words):
                    yield inference_pb2.GenerateResponse(text=word if not index else " " + word)
                    await asyncio.sleep(0)
                if model != "endless":
                    break
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.set()
            raise
        last = _whole(text)
        last.text = ""
        yield last

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:
        base = inference_pb2.Model(reference="tiny", resident=True)
        bot = inference_pb2.Model(reference="bot@production", version=_VERSION)
        return inference_pb2.ListModelsResponse(models=[base, bot])

    async def ListRollouts(self, request: Any, context: Any) -> rollout_pb2.ListRolloutsResponse:
        figures = rollout_pb2.PartFigures(version=_VERSION, requests=7)
        canary = rollout_pb2.CanaryStatus(
            weight_percent=5, state=rollout_pb2.CANARY_STATE_SERVING, figures=figures
        )
        alias = f"{_VERSION.rpartition('/versions/')[0]}/aliases/production"
        return rollout_pb2.ListRolloutsResponse(
            rollouts=[rollout_pb2.RolloutStatus(alias=alias, stable=figures, canaries=[canary])]
        )

    async def GetResidency(self, request: Any, context: Any) -> inference_pb2.Residency:
        held = inference_pb2.ResidentAdapter(
            version=_VERSION, state=inference_pb2.RESIDENCY_STATE_READY, size_bytes=2048
        )
        return inference_pb2.Residency(base="tiny", adapters=[held], revision=3)


_VERSION = "namespaces/default/adapters/bot/versions/2"


def _whole(text: str) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        text=text,
        finish_reason=inference_pb2.FINISH_REASON_STOP,
        provenance=inference_pb2.Provenance(version=_VERSION, version_digest="sha256:" + "a" * 64),
        usage=inference_pb2.Usage(prompt_tokens=1, completion_tokens=len(text.split())),
    )


@asynccontextmanager
async def serving(
    *, trainer: FakeTrainer | None = None, inference: FakeInference | None = None
) -> AsyncIterator[str]:
    """A server with the given servicers and our errors; answers with its address."""
    server = grpc.aio.server(interceptors=[CallInterceptor(RpcMetrics(CollectorRegistry()))])
    if trainer is not None:
        trainer_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    if inference is not None:
        inference_grpc.add_InferenceServiceServicer_to_server(inference, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
