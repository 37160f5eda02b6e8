"""Starts workers, hears them, and sees each to its end; finds them again after the trainer was killed."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.trainer.attendance import Attendance, Limits
from services.trainer.jobs import Attempt, Finished, Hello, Job, Report
from services.trainer.journal import Journal
from services.trainer.launchers.base import Launcher, Remains, Worker
from services.trainer.launches import Launches
from services.trainer.lifecycle import (
    Change,
    Verdict,
    attempt_over,
    begin,
    ended,
    launched,
    reported,
)
from services.trainer.metrics import TrainerMetrics
from services.trainer.notices import Notices
from services.trainer.session import Acknowledged, Answer, NumberedReport
from services.trainer.slots import Slots
from services.trainer.stall import Beat
from services.trainer.states import ACTIVE, JobState
from services.trainer.verdict import judge

_STORE_RETRY_S = 2.0
_LOG_TAIL_BYTES = 4096
_NOTHING = Remains()


class Supervisor:
    """The workers of one trainer.

    Args:
        journal: where everything is stored.
        launcher: what starts workers.
        launches: how each is to be started.
        slots: given back when a worker is gone.
        limits: how long workers may take.
        metrics: restarts are counted there.
    """

    def __init__(
        self,
        journal: Journal,
        launcher: Launcher,
        launches: Launches,
        slots: Slots,
        limits: Limits,
        metrics: TrainerMetrics,
    ) -> None:
        self._journal = journal
        self._launcher = launcher
        self._launches = launches
        self._slots = slots
        self._limits = limits
        self._metrics = metrics
        self._attending: dict[str, Attendance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def launch(self, job: Job, slots: tuple[int, ...]) -> None:
        """Starts the next attempt of a queued job on slots that were taken for it.

        Raises:
            IllegalTransitionError: the job is not queued any longer; nothing was started.
        """
        decide = begin(secrets.token_urlsafe(32), slots, self._launches.trainer_address)
        try:
            begun = await self._journal.change(job.name, decide)
        except BaseException:
            self._slots.release(slots)
            raise
        assert begun.attempt is not None
        try:
            worker = await self._launcher.start(self._launches.of(begun.job, begun.attempt))
        except OSError as error:
            await self._settle(begun.attempt, None, f"it could not be started: {error}")
            self._slots.release(slots)
            return
        attendance = self._attend(begun.attempt, worker, adopted=False)
        stored = await self._journal.change(job.name, launched(worker.handle))
        if stored.job.cancel_requested:
            attendance.cancel(stored.job.cancel_reason)

    async def recover(self) -> None:
        """After a start of the trainer: takes over the workers that still run, gives up the others."""
        for job in await self._journal.store.in_states(ACTIVE):
            attempt = await self._journal.store.attempt(job.name, job.attempt)
            assert attempt is not None, job.name
            launch = self._launches.of(job, attempt)
            worker = await self._launcher.find(launch, attempt.handle)
            if worker is None:
                await self._settle(attempt, None, "it was gone when the trainer started again")
                continue
            get_logger().info("worker adopted", job=job.name, attempt=attempt.number)
            self._slots.hold(attempt.slots)
            attendance = self._attend(attempt, worker, adopted=True)
            if not attempt.handle:
                await self._journal.change(job.name, launched(worker.handle))
            if attempt.finished is not None:
                attendance.finished()
            if job.cancel_requested:
                attendance.cancel(job.cancel_reason)
        await self._launcher.recovered()

    def preempt_strangers(self) -> None:
        """Has adopted workers that report to another address than ours start again with ours."""
        for attendance in self._attending.values():
            if attendance.attempt.trainer_address != self._launches.trainer_address:
                attendance.preempt("The trainer is at another address now")

    async def session(
        self, hello: Hello, reports: AsyncIterator[tuple[int, Report | Beat]]
    ) -> AsyncIterator[Answer]:
        """One stream of a worker, with its reports and its signs of life.

        Raises:
            GraftError: PERMISSION_DENIED for another token; JOB_ENDED for an attempt that is over.
        """
        attendance = await self._authenticate(hello)
        link = attendance.connect()

        async def read() -> None:
            async for number, report in reports:
                if isinstance(report, Beat):
                    attendance.seen(report)
                    continue
                attendance.seen()
                link.receive(number, report)

        async def record(batch: Sequence[NumberedReport]) -> None:
            await self._journal.change(hello.job, reported(hello.attempt, batch))
            if any(isinstance(report, Finished) for _number, report in batch):
                attendance.finished()

        reading = asyncio.ensure_future(read())
        reading.add_done_callback(lambda _task: attendance.disconnect(link))
        try:
            # The hello is accepted: only now does the worker report.
            yield Acknowledged(0)
            async with aclosing(link.answers(record)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def cancel(self, name: str, reason: str) -> None:
        """Stops the worker of a job, if it has one."""
        if (attendance := self._attending.get(name)) is not None:
            attendance.cancel(reason)

    async def drain(self, timeout_s: float) -> None:
        """Has every worker write a checkpoint and end; ends those that do not within the time.

        Workers that outlive the trainer are left as they are: the next one finds them.
        """
        if self._launcher.outlived:
            await self._leave_all()
            return
        self._draining = True
        for attendance in self._attending.values():
            attendance.preempt("The trainer is shutting down")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for attendance in list(self._attending.values()):
            attendance.kill("it did not end while the trainer shut down")
        await asyncio.gather(*self._tasks)

    async def _leave_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for attendance in self._attending.values():
            attendance.leave()

    def _attend(self, attempt: Attempt, worker: Worker, adopted: bool) -> Attendance:
        attendance = Attendance(attempt, worker, self._limits, adopted)
        self._attending[attempt.job] = attendance
        notices = Notices(self._journal, attempt)
        worker.listen(notices.heard)
        task = asyncio.ensure_future(self._see_to_end(attendance, notices))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._draining:
            attendance.preempt("The trainer is shutting down")
        return attendance

    async def _see_to_end(self, attendance: Attendance, notices: Notices) -> None:
        attempt, worker = attendance.attempt, attendance.worker
        try:
            exit_code = await attendance.until_gone()
            remains = await worker.remains()
            await notices.close()
        finally:
            notices.leave()
        because = attendance.killed_because
        await self._settle(attempt, exit_code, because, attendance.preempted, remains)
        attendance.leave()
        del self._attending[attempt.job]
        self._slots.release(attempt.slots)
        await worker.release()

    async def _settle(
        self,
        attempt: Attempt,
        exit_code: int | None,
        because: str,
        preempted: bool = False,
        remains: Remains = _NOTHING,
    ) -> None:
        """Stores what the end of an attempt means; while that fails, its slots are not given away."""
        log = get_logger().bind(job=attempt.job, attempt=attempt.number, exit_code=exit_code)
        while True:
            try:
                verdict = await self._store_end(attempt, exit_code, because, preempted, remains)
                break
            except Exception as error:
                log.error("end of attempt not stored", exc_info=error)
                if self._draining:
                    return
                await asyncio.sleep(_STORE_RETRY_S)
        log.info("attempt ended", state=verdict.state, message=verdict.message)
        if verdict.state is JobState.QUEUED:
            self._metrics.restarted("lost" if verdict.lost else "preempted")

    async def _store_end(
        self,
        attempt: Attempt,
        exit_code: int | None,
        because: str,
        preempted: bool,
        remains: Remains,
    ) -> Verdict:
        tail = remains.log_tail or _last_line(
            self._launches.work_dir(attempt.job) / f"attempt-{attempt.number}.log"
        )
        verdicts: list[Verdict] = []

        def decide(job: Job, current: Attempt | None) -> Change:
            assert current is not None
            assert current.number == attempt.number
            verdict = judge(
                job,
                _last_report(current.finished, remains.finished),
                exit_code,
                killed_because=because,
                how=remains.because,
                preempted=preempted,
                disrupted=remains.disrupted,
                draining=self._draining,
                log_tail=tail,
            )
            verdicts.append(verdict)
            return ended(exit_code, verdict)(job, current)

        await self._journal.change(attempt.job, decide)
        return verdicts[-1]

    async def _authenticate(self, hello: Hello) -> Attendance:
        attempt = await self._journal.store.attempt(hello.job, hello.attempt)
        if attempt is None or not _same(attempt.token, hello.token):
            raise GraftError(
                Reason.PERMISSION_DENIED,
                f"This is not the token of attempt {hello.attempt} of {hello.job}",
                next_step="Only workers that this trainer started may report.",
                job=hello.job,
            )
        attendance = self._attending.get(hello.job)
        if attendance is None or attendance.attempt.number != hello.attempt:
            raise attempt_over(hello.job, hello.attempt)
        return attendance


def _last_report(reported: Finished | None, left: Finished | None) -> Finished | None:
    """Of what a worker reported and what is known where it ran: why it was made to stop outweighs that it did."""
    if reported is None or (left is not None and left.cause and not reported.succeeded):
        return left
    return reported


def _same(token: str, given: str) -> bool:
    return hmac.compare_digest(token.encode(), given.encode())


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
