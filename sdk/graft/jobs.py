"""Jobs: started, listed, followed, paused and cancelled."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from graft import convert
from graft.blobs import describe_file
from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.names import job_name, namespace_name
from graft.results import Job, JobEvent, JobFailedError, JobState
from graft.specs import SpecSource, TrainOptions, build_spec
from graft.trainer.v1 import trainer_service_pb2 as pb
from graft.trainer.v1.job_spec_pb2 import DatasetSpec, JobSpec
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec, MergeSpec

_PEER = "the trainer"
_PAGE = 1000


class JobHandle:
    """A job on the trainer, by its name; cheap to make and safe to forget: the job goes on."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def __repr__(self) -> str:
        return f"JobHandle({self.name!r})"

    async def get(self) -> Job:
        """The job as it is now.

        Raises:
            GraftError: JOB_NOT_FOUND, UNAVAILABLE.
        """
        connection = self._connection
        request = pb.GetJobRequest(name=self.name)
        return convert.job(await connection.call(connection.trainer.GetJob, request, _PEER))

    async def events(self, after_sequence: int = 0) -> AsyncGenerator[JobEvent, None]:
        """Every event after a sequence number, until the job has ended; goes on across restarts.

        Raises:
            GraftError: JOB_NOT_FOUND; UNAVAILABLE when the trainer stays away.
        """
        seen, connection = after_sequence, self._connection

        def open_stream() -> AsyncGenerator[pb.JobEvent, None]:
            request = pb.WatchJobRequest(name=self.name, after_sequence=seen)
            return connection.stream(connection.trainer.WatchJob, request, _PEER)

        async def finished() -> bool:
            return (await self.get()).state.ended

        async with aclosing(connection.resumed(open_stream, finished)) as messages:
            async for message in messages:
                seen = message.sequence
                yield convert.job_event(message)

    async def wait(self, check: bool = True) -> Job:
        """Waits for the end.

        Args:
            check: raise when the job did not succeed.

        Raises:
            JobFailedError: it failed or was cancelled; its job attribute holds how.
        """
        async for _ in self.events():
            pass
        job = await self.get()
        if check and job.state is not JobState.SUCCEEDED:
            raise JobFailedError(job)
        return job

    async def cancel(self, reason: str = "") -> Job:
        """Asks it to stop; it ends within a second or one step.

        Raises:
            GraftError: JOB_ENDED, JOB_NOT_FOUND.
        """
        connection = self._connection
        request = pb.CancelJobRequest(name=self.name, reason=reason)
        return convert.job(await connection.call(connection.trainer.CancelJob, request, _PEER))

    async def pause(self, reason: str = "") -> Job:
        """Asks it to write a checkpoint and free what it holds; asked again, nothing happens.

        Raises:
            GraftError: JOB_ENDED, also while it is being cancelled; JOB_NOT_FOUND.
        """
        connection = self._connection
        request = pb.PauseJobRequest(name=self.name, reason=reason)
        return convert.job(await connection.call(connection.trainer.PauseJob, request, _PEER))

    async def resume(self) -> Job:
        """Lets a paused job go on from its last good checkpoint; one that is not paused stays as it is.

        Raises:
            GraftError: JOB_ENDED, JOB_NOT_FOUND.
        """
        connection = self._connection
        request = pb.ResumeJobRequest(name=self.name)
        return convert.job(await connection.call(connection.trainer.ResumeJob, request, _PEER))

    async def retry(self) -> Job:
        """Takes a failed job up again, with the stage that failed; one that runs or waits stays as it is.

        Raises:
            GraftError: JOB_ENDED, when it has succeeded or was cancelled; JOB_NOT_FOUND.
        """
        connection = self._connection
        request = pb.RetryJobRequest(name=self.name)
        return convert.job(await connection.call(connection.trainer.RetryJob, request, _PEER))


class Jobs:
    """The jobs of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    async def create(
        self,
        spec: SpecSource | None,
        options: TrainOptions,
        *,
        upload: bool = False,
        request_id: str | None = None,
    ) -> JobHandle:
        """Stores a job; see Client.train."""
        message = build_spec(spec, options)
        return await self.start(message, upload=upload, request_id=request_id)

    async def start(
        self,
        spec: JobSpec | MergeSpec | EvaluationSpec,
        *,
        upload: bool = False,
        request_id: str | None = None,
    ) -> JobHandle:
        """Stores a job of any kind; see Client.submit."""
        if upload and not isinstance(spec, MergeSpec):
            await self.upload_data(spec.dataset)
        connection = self._connection
        request_id = request_id or uuid.uuid4().hex
        request = pb.CreateJobRequest(parent=namespace_name(self._namespace), request_id=request_id)
        if isinstance(spec, JobSpec):
            request.spec.CopyFrom(spec)
        elif isinstance(spec, MergeSpec):
            request.merge.CopyFrom(spec)
        else:
            request.evaluation.CopyFrom(spec)
        job = await connection.call(
            connection.trainer.CreateJob, request, _PEER, request_id=request_id
        )
        return JobHandle(connection, job.name)

    async def upload_data(self, dataset: DatasetSpec) -> None:
        """Sends data sets to the registry; from then on the spec names them by their digests.

        Sets on the Hub or in an object store stay where they are: the trainer fetches them.

        Raises:
            GraftError: BAD_DATA, when one is not one file.
        """
        alone = () if dataset.sources else (dataset,)
        for one in (*alone, *dataset.sources, *dataset.eval_sources, *dataset.regression_sources):
            if one.blob_digest or "://" in one.path:
                continue
            path = _local_file(one.path)
            file = describe_file(path.parent, path)
            await self._connection.blobs.upload(path, file)
            one.path = ""
            one.blob_digest, one.blob_name = file.digest, path.name

    async def list(self, limit: int = 100) -> Sequence[Job]:
        """The newest jobs, newest first."""
        connection, found, token = self._connection, list[Job](), ""
        while len(found) < limit:
            request = pb.ListJobsRequest(
                parent=namespace_name(self._namespace),
                page_size=min(limit - len(found), _PAGE),
                page_token=token,
            )
            page = await connection.call(connection.trainer.ListJobs, request, _PEER)
            found += map(convert.job, page.jobs)
            token = page.next_page_token
            if not token:
                break
        return found

    def handle(self, name: str) -> JobHandle:
        """A handle on a job; name is short or full. Asks nobody."""
        full = name if "/" in name else job_name(self._namespace, name)
        return JobHandle(self._connection, full)

    async def get(self, name: str) -> Job:
        """One job.

        Raises:
            GraftError: JOB_NOT_FOUND.
        """
        return await self.handle(name).get()


def _local_file(path: str) -> Path:
    if Path(path).is_file():
        return Path(path)
    raise GraftError(
        Reason.BAD_DATA,
        f"{path or 'The data'} is not a file, so it cannot be uploaded",
        next_step="Name one .json, .jsonl, .csv, .parquet or .arrow file.",
        path=path,
    )
