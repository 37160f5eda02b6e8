"""What every JobStore must do."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason

from services.trainer.jobs import CheckpointSaved, Finished, Job, LogLine, Metrics, StateChanged
from services.trainer.lifecycle import Change, Decision, begin, moved, now, reported
from services.trainer.states import FailureCause, IllegalTransitionError, JobState
from services.trainer.store.base import JobStore, RequestKey
from services.trainer.store.memory import MemoryJobStore
from services.trainer.store.sqlite import SqliteJobStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    made: JobStore = (
        MemoryJobStore()
        if request.param == "memory"
        else await SqliteJobStore.open(tmp_path / "jobs.sqlite")
    )
    yield made
    await made.close()


def job(name: str = "bot-1", namespace: str = "default") -> Job:
    return Job(
        name=f"namespaces/{namespace}/jobs/{name}",
        namespace=namespace,
        spec_json='{"seed":"7"}',
        slots=1,
        cpu_threads=0,
        max_restarts=3,
        create_time=now(),
    )


async def running(store: JobStore, name: str = "bot-1") -> Job:
    stored, _ = await store.create(job(name), None)
    await store.change(stored.name, moved(JobState.PREFLIGHT))
    await store.change(stored.name, moved(JobState.QUEUED))
    return (await store.change(stored.name, begin("token", (0,), "localhost:1"))).job


class TestJobStore:
    async def test_a_job_comes_back_as_it_was_stored(self, store: JobStore) -> None:
        stored, new = await store.create(job(), None)
        assert new
        assert await store.get(stored.name) == stored
        assert stored.spec_json == '{"seed":"7"}'

    async def test_an_unknown_job_is_not_found(self, store: JobStore) -> None:
        with pytest.raises(GraftError, match="namespaces/default/jobs/nobody") as error:
            await store.get("namespaces/default/jobs/nobody")
        assert error.value.reason is Reason.JOB_NOT_FOUND

    async def test_a_name_is_given_once(self, store: JobStore) -> None:
        await store.create(job(), None)
        with pytest.raises(GraftError) as error:
            await store.create(job(), None)
        assert error.value.reason is Reason.ALREADY_EXISTS

    async def test_a_repeated_request_gets_the_first_ones_job(self, store: JobStore) -> None:
        key = RequestKey("default", "r1", "sha256:a")
        first, _ = await store.create(job("one"), key)
        again, new = await store.create(job("two"), key)
        assert (again, new) == (first, False)

    async def test_a_request_id_is_refused_for_another_request(self, store: JobStore) -> None:
        await store.create(job("one"), RequestKey("default", "r1", "sha256:a"))
        with pytest.raises(GraftError) as error:
            await store.create(job("two"), RequestKey("default", "r1", "sha256:b"))
        assert error.value.reason is Reason.REQUEST_ID_REUSED
        assert await store.page("default", 10, None) == [
            await store.get("namespaces/default/jobs/one")
        ]

    async def test_a_change_stores_the_state_with_its_event(self, store: JobStore) -> None:
        stored, _ = await store.create(job(), None)
        changed = await store.change(stored.name, moved(JobState.PREFLIGHT, "why"))
        assert changed.job == await store.get(stored.name)
        assert changed.job.state is JobState.PREFLIGHT
        (event,) = await store.events(stored.name, 0, 10)
        assert event.sequence == 1
        assert event.body == StateChanged(JobState.PENDING, JobState.PREFLIGHT, "why")
        assert changed.events == (event,)

    async def test_an_illegal_change_stores_nothing(self, store: JobStore) -> None:
        stored, _ = await store.create(job(), None)
        with pytest.raises(IllegalTransitionError):
            await store.change(stored.name, moved(JobState.SUCCEEDED))
        assert await store.get(stored.name) == stored
        assert await store.events(stored.name, 0, 10) == []

    async def test_events_of_every_kind_come_back_in_order(self, store: JobStore) -> None:
        begun = await running(store)
        reports: list[tuple[int, Metrics | LogLine | CheckpointSaved]] = [
            (1, Metrics(step=1, loss=0.5, eval_loss=0.25)),
            (2, LogLine("hello")),
            (3, CheckpointSaved(1)),
        ]
        await store.change(begun.name, reported(1, reports))
        events = await store.events(begun.name, begun.last_sequence, 10)
        assert [event.body for event in events] == [body for _, body in reports]
        assert [event.sequence for event in events] == [4, 5, 6]
        assert {event.attempt for event in events} == {1}
        assert (await store.events(begun.name, 4, 1)) == [events[1]]

    async def test_a_loss_that_is_not_a_number_survives(self, store: JobStore) -> None:
        begun = await running(store)
        await store.change(begun.name, reported(1, [(1, Metrics(loss=math.nan))]))
        metrics = (await store.get(begun.name)).metrics
        assert metrics is not None
        assert math.isnan(metrics.loss)

    async def test_an_attempt_comes_back_with_its_last_report(self, store: JobStore) -> None:
        begun = await running(store)
        finished = Finished(cause=FailureCause.BAD_DATA, message="row 3")
        await store.change(begun.name, reported(1, [(1, finished)]))
        attempt = await store.attempt(begun.name, 1)
        assert attempt is not None
        assert (attempt.token, attempt.slots, attempt.last_report) == ("token", (0,), 1)
        assert attempt.finished == finished
        assert await store.attempt(begun.name, 2) is None

    async def test_pages_are_newest_first_and_of_one_namespace(self, store: JobStore) -> None:
        made = [(await store.create(job(f"bot-{n}"), None))[0] for n in range(5)]
        await store.create(job("other", "elsewhere"), None)
        first = await store.page("default", 2, None)
        assert first == [made[4], made[3]]
        assert await store.page("default", 10, first[-1].number) == [made[2], made[1], made[0]]

    async def test_jobs_are_found_by_state_oldest_first(self, store: JobStore) -> None:
        one = await running(store, "one")
        two, _ = await store.create(job("two"), None)
        three, _ = await store.create(job("three"), None)
        assert await store.in_states([JobState.PENDING, JobState.QUEUED]) == [two, three]
        assert await store.in_states([JobState.RUNNING]) == [one]
        assert await store.counts() == {JobState.PENDING: 2, JobState.RUNNING: 1}

    async def test_concurrent_changes_of_a_job_lose_nothing(self, store: JobStore) -> None:
        begun = await running(store)

        def say(number: int) -> Decision:
            return lambda job, _attempt: Change(job, events=(LogLine(str(number)),))

        await asyncio.gather(*(store.change(begun.name, say(n)) for n in range(20)))
        events = await store.events(begun.name, begun.last_sequence, 100)
        assert [event.sequence for event in events] == list(range(4, 24))
        assert {event.body for event in events} == {LogLine(str(n)) for n in range(20)}


class TestSqliteFile:
    async def test_what_was_stored_is_there_after_reopening(self, tmp_path: Path) -> None:
        store = await SqliteJobStore.open(tmp_path / "jobs.sqlite")
        begun = await running(store)
        await store.close()
        store = await SqliteJobStore.open(tmp_path / "jobs.sqlite")
        assert await store.get(begun.name) == begun
        await store.close()

    async def test_a_database_of_another_schema_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(GraftError, match="schema version 99"):
            await SqliteJobStore.open(path)

    async def test_a_full_disk_is_said_and_loses_nothing(self, tmp_path: Path) -> None:
        store = await SqliteJobStore.open(tmp_path / "jobs.sqlite")
        begun = await running(store)
        async with store._engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")
        long = reported(1, [(1, LogLine("x" * 100_000))])
        with pytest.raises(GraftError, match="cannot grow") as error:
            await store.change(begun.name, long)
        assert error.value.reason is Reason.STORAGE_FULL
        assert await store.get(begun.name) == begun
        async with store._engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        assert len((await store.change(begun.name, long)).events) == 1
        await store.close()
