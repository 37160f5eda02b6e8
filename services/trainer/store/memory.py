"""A store in memory: for tests and for simulations. Everything is gone with the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from services.trainer.jobs import Attempt, Event, Job
from services.trainer.lifecycle import Decision, now
from services.trainer.states import JobState
from services.trainer.store.base import (
    Changed,
    JobStore,
    RequestKey,
    already_exists,
    check_same_request,
    job_not_found,
)


class MemoryJobStore(JobStore):
    """JobStore over dictionaries; a change is whole because nothing in it waits."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._events: dict[str, list[Event]] = {}
        self._requests: dict[tuple[str, str], tuple[str, str]] = {}

    async def create(self, job: Job, key: RequestKey | None) -> tuple[Job, bool]:
        if key is not None and (key.namespace, key.request_id) in self._requests:
            digest, name = self._requests[key.namespace, key.request_id]
            check_same_request(key, digest)
            return self._jobs[name], False
        if job.name in self._jobs:
            raise already_exists(job.name)
        job = replace(job, number=len(self._jobs) + 1)
        self._jobs[job.name], self._events[job.name] = job, []
        if key is not None:
            self._requests[key.namespace, key.request_id] = (key.digest, job.name)
        return job, True

    async def get(self, name: str) -> Job:
        if name not in self._jobs:
            raise job_not_found(name)
        return self._jobs[name]

    async def attempt(self, name: str, number: int) -> Attempt | None:
        return self._attempts.get((name, number))

    async def change(self, name: str, decide: Decision) -> Changed:
        job = await self.get(name)
        before = self._attempts.get((name, job.attempt))
        change = decide(job, before)
        first = job.last_sequence + 1
        events = tuple(
            Event(first + index, now(), change.job.attempt, body)
            for index, body in enumerate(change.events)
        )
        after = replace(change.job, last_sequence=job.last_sequence + len(events))
        attempt = change.attempt or before
        self._jobs[name] = after
        self._events[name].extend(events)
        if attempt is not None:
            self._attempts[name, attempt.number] = attempt
        return Changed(after, attempt, events)

    async def page(self, namespace: str, limit: int, before: int | None) -> list[Job]:
        found = [
            job
            for job in reversed(self._jobs.values())
            if job.namespace == namespace and (before is None or job.number < before)
        ]
        return found[:limit]

    async def in_states(self, states: Collection[JobState]) -> list[Job]:
        return [job for job in self._jobs.values() if job.state in states]

    async def counts(self) -> Mapping[JobState, int]:
        return Counter(job.state for job in self._jobs.values())

    async def events(self, name: str, after: int, limit: int) -> list[Event]:
        found = self._events.get(name, [])
        return [event for event in found if event.sequence > after][:limit]

    async def close(self) -> None:
        """Nothing to release."""
