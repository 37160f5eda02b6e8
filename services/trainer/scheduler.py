"""Brings jobs from PENDING to a worker: checks them, then starts them in order as slots become free."""

from __future__ import annotations

import asyncio

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.trainer.jobs import Job
from services.trainer.journal import Journal
from services.trainer.lifecycle import Decision, moved
from services.trainer.metrics import TrainerMetrics
from services.trainer.preflight import Preflight
from services.trainer.slots import Slots
from services.trainer.states import FailureCause, IllegalTransitionError, JobState
from services.trainer.supervisor import Supervisor

_CHECKS_AT_ONCE = 2
_RETRY_S = 2.0
_UNCHECKED = (JobState.PENDING, JobState.PREFLIGHT)


class Scheduler:
    """First come, first served; a job that needs several slots is not overtaken while it waits.

    Args:
        journal: jobs are read and changed there.
        supervisor: starts workers.
        preflight: checks jobs before they are queued.
        slots: what there is.
        wake: set by whoever makes something possible: a new job, a free slot.
        metrics: shows the slots.
    """

    def __init__(
        self,
        journal: Journal,
        supervisor: Supervisor,
        preflight: Preflight,
        slots: Slots,
        wake: asyncio.Event,
        metrics: TrainerMetrics,
    ) -> None:
        self._journal = journal
        self._supervisor = supervisor
        self._preflight = preflight
        self._slots = slots
        self._wake = wake
        self._metrics = metrics
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._checking = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; what was left by an earlier trainer is taken up first."""
        self._wake.set()
        self._loop = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Starts nothing more; a launch that has begun is brought to its end."""
        self._stopping = True
        self._wake.set()
        for check in self._checks.values():
            check.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)
        if self._loop is not None:
            await self._loop

    def forget(self, name: str) -> None:
        """Stops the check of a job that was cancelled."""
        if (check := self._checks.get(name)) is not None:
            check.cancel()

    async def _run(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._begin_checks()
                await self._fill_slots()
            except Exception as error:
                # For example a full disk: the jobs stay as they are stored, so try again.
                get_logger().error("scheduling failed", exc_info=error)
                asyncio.get_running_loop().call_later(_RETRY_S, self._wake.set)
            self._metrics.slots(self._slots.free, self._slots.total)

    async def _begin_checks(self) -> None:
        for job in await self._journal.store.in_states(_UNCHECKED):
            if job.name not in self._checks and not self._stopping:
                self._checks[job.name] = asyncio.ensure_future(self._check(job))

    async def _check(self, job: Job) -> None:
        try:
            async with self._checking:
                if job.state is JobState.PENDING:
                    await self._journal.change(job.name, moved(JobState.PREFLIGHT))
                await self._journal.change(job.name, await self._outcome(job))
        except IllegalTransitionError:
            get_logger().info("job moved on while it was checked", job=job.name)
        except Exception as error:
            get_logger().error("check failed", job=job.name, exc_info=error)
            await asyncio.sleep(_RETRY_S)
        finally:
            del self._checks[job.name]
            self._wake.set()

    async def _outcome(self, job: Job) -> Decision:
        if job.slots > self._slots.total:
            return _checked(JobState.FAILED, _too_large(job, self._slots.total), _CONFIG)
        try:
            await self._preflight.check(job)
        except GraftError as error:
            return _checked(JobState.FAILED, str(error), _cause(error))
        return _checked(JobState.QUEUED)

    async def _fill_slots(self) -> None:
        for job in await self._journal.store.in_states((JobState.QUEUED,)):
            if self._stopping:
                return
            try:
                if job.slots > self._slots.total:
                    message = _too_large(job, self._slots.total)
                    decide = moved(JobState.FAILED, message, _CONFIG, before=JobState.QUEUED)
                    await self._journal.change(job.name, decide)
                    continue
                taken = self._slots.take(job.slots)
                if taken is None:
                    return
                await self._supervisor.launch(job, taken)
            except IllegalTransitionError:
                get_logger().info("job moved on while it was queued", job=job.name)


_CONFIG = FailureCause.BAD_CONFIG


def _checked(after: JobState, message: str = "", cause: FailureCause | None = None) -> Decision:
    """What a check found. A job that was read just before another check of it ended may run by now."""
    return moved(after, message, cause, before=JobState.PREFLIGHT)


def _cause(error: GraftError) -> FailureCause:
    if error.reason is Reason.BAD_DATA:
        return FailureCause.BAD_DATA
    if error.reason in (Reason.INTERNAL, Reason.UNAVAILABLE):
        return FailureCause.INTERNAL
    return FailureCause.BAD_CONFIG


def _too_large(job: Job, slots: int) -> str:
    return (
        f"The job needs {job.slots} slots and this trainer has {slots}. "
        "Lower resources.slots, or raise GRAFT_TRAINER_SLOTS."
    )
