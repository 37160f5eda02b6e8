"""The scheduler against what it read a moment too early."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import cast

from prometheus_client import CollectorRegistry

from services.trainer.jobs import Job
from services.trainer.journal import Journal
from services.trainer.lifecycle import begin, now
from services.trainer.metrics import TrainerMetrics
from services.trainer.scheduler import Scheduler
from services.trainer.slots import Slots
from services.trainer.states import JobState
from services.trainer.store.memory import MemoryJobStore
from services.trainer.supervisor import Supervisor
from tests.support.kube_api.preflight import NoPreflight
from tests.support.waiting import eventually

NAME = "namespaces/default/jobs/bot-1"


class LateStore(MemoryJobStore):
    """Answers what jobs there are to check with a job as it was while it was checked."""

    late: Job | None = None

    async def in_states(self, states: Collection[JobState]) -> list[Job]:
        if JobState.PREFLIGHT in states and self.late is not None:
            return [self.late]
        found = await super().in_states(states)
        if JobState.PREFLIGHT in states and found and found[0].state is JobState.PREFLIGHT:
            self.late = found[0]
        return found


class Launches:
    """A supervisor whose workers run for ever."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.begun: list[str] = []

    async def launch(self, job: Job, slots: tuple[int, ...]) -> None:
        await self._journal.change(job.name, begin("token", slots, ""))
        self.begun.append(job.name)


async def test_a_job_that_runs_is_not_queued_again_by_a_check_that_comes_late() -> None:
    store = LateStore()
    metrics, wake = TrainerMetrics(CollectorRegistry()), asyncio.Event()
    journal, slots = Journal(store, metrics), Slots(4, wake.set)
    launches = Launches(journal)
    supervisor = cast(Supervisor, launches)
    scheduler = Scheduler(journal, supervisor, NoPreflight(), slots, wake, metrics)
    job = Job(NAME, "default", "{}", 1, 1, 3, now(), state=JobState.PREFLIGHT)
    await journal.create(job, None)
    scheduler.start()
    await eventually(lambda: launches.begun == [NAME])
    for _ in range(20):
        wake.set()
        await asyncio.sleep(0.01)
    await scheduler.stop()
    assert launches.begun == [NAME]
    assert (await store.get(NAME)).state is JobState.RUNNING
