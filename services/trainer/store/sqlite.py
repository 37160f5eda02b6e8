"""The store of one machine: a SQLite file in WAL mode, written by one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from graft.errors import GraftError, Reason
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

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
from services.trainer.store.codec import Codec
from services.trainer.store.tables import SCHEMA_VERSION, attempts, events, jobs, metadata, requests


class SqliteJobStore(JobStore):
    """JobStore over SQLite; open() it, and close() it at the end."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._codec = Codec()
        # SQLite has one writer; waiting here costs less than its busy handler.
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> SqliteJobStore:
        """Opens or makes the database.

        Raises:
            GraftError: INTERNAL, for a database of another schema version.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        sql.event.listen(engine.sync_engine, "connect", _on_connect)
        try:
            async with engine.begin() as connection:
                await _prepare(connection, path)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._writing, self._engine.begin() as connection:
                yield connection
        except sql.exc.OperationalError as error:
            if "is full" not in str(error.orig):
                raise
            raise GraftError(
                Reason.STORAGE_FULL,
                f"The trainer's database cannot grow: {error.orig}",
                next_step="Make room on the disk of GRAFT_TRAINER_DATA_DIR; nothing stored is lost.",
            ) from None

    async def create(self, job: Job, key: RequestKey | None) -> tuple[Job, bool]:
        async with self._transaction() as connection:
            if key is not None:
                known = await self._known(connection, key)
                if known is not None:
                    return known, False
            row = {
                "name": job.name,
                "namespace": job.namespace,
                "state": job.state,
                "spec": job.spec_json,
                "record": self._codec.dump_job(job),
            }
            try:
                inserted = await connection.execute(sql.insert(jobs).values(row))
            except sql.exc.IntegrityError:
                raise already_exists(job.name) from None
            if key is not None:
                await connection.execute(
                    sql.insert(requests).values(
                        namespace=key.namespace,
                        request_id=key.request_id,
                        digest=key.digest,
                        job=job.name,
                    )
                )
            assert inserted.inserted_primary_key is not None
            return replace(job, number=inserted.inserted_primary_key[0]), True

    async def _known(self, connection: AsyncConnection, key: RequestKey) -> Job | None:
        query = sql.select(requests.c.digest, requests.c.job).where(
            requests.c.namespace == key.namespace, requests.c.request_id == key.request_id
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        check_same_request(key, row.digest)
        return await self._job(connection, row.job)

    async def get(self, name: str) -> Job:
        async with self._engine.connect() as connection:
            return await self._job(connection, name)

    async def attempt(self, name: str, number: int) -> Attempt | None:
        async with self._engine.connect() as connection:
            return await self._attempt(connection, name, number)

    async def change(self, name: str, decide: Decision) -> Changed:
        async with self._transaction() as connection:
            job = await self._job(connection, name)
            before = await self._attempt(connection, name, job.attempt)
            change = decide(job, before)
            time, first = now(), job.last_sequence + 1
            made = tuple(
                Event(first + index, time, change.job.attempt, body)
                for index, body in enumerate(change.events)
            )
            after = replace(change.job, last_sequence=job.last_sequence + len(made))
            if after != job:
                await connection.execute(
                    sql.update(jobs)
                    .where(jobs.c.name == name)
                    .values(state=after.state, record=self._codec.dump_job(after))
                )
            if change.attempt is not None:
                await self._save_attempt(connection, change.attempt)
            if made:
                rows = [self._event_row(name, event) for event in made]
                await connection.execute(sql.insert(events), rows)
            return Changed(after, change.attempt or before, made)

    async def page(self, namespace: str, limit: int, before: int | None) -> list[Job]:
        query = sql.select(jobs).where(jobs.c.namespace == namespace)
        if before is not None:
            query = query.where(jobs.c.number < before)
        return await self._jobs(query.order_by(jobs.c.number.desc()).limit(limit))

    async def in_states(self, states: Collection[JobState]) -> list[Job]:
        query = sql.select(jobs).where(jobs.c.state.in_(list(states)))
        return await self._jobs(query.order_by(jobs.c.number))

    async def counts(self) -> Mapping[JobState, int]:
        query = sql.select(jobs.c.state, sql.func.count()).group_by(jobs.c.state)
        async with self._engine.connect() as connection:
            return {JobState(state): count for state, count in await connection.execute(query)}

    async def events(self, name: str, after: int, limit: int) -> list[Event]:
        query = (
            sql.select(events)
            .where(events.c.job == name, events.c.sequence > after)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [self._event(row) for row in await connection.execute(query)]

    async def close(self) -> None:
        await self._engine.dispose()

    async def _jobs(self, query: sql.Select[Any]) -> list[Job]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(query)
            return [self._codec.load_job(row.record, row.number, row.spec) for row in rows]

    async def _job(self, connection: AsyncConnection, name: str) -> Job:
        query = sql.select(jobs).where(jobs.c.name == name)
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise job_not_found(name)
        return self._codec.load_job(row.record, row.number, row.spec)

    async def _attempt(self, connection: AsyncConnection, name: str, number: int) -> Attempt | None:
        query = sql.select(attempts.c.record).where(
            attempts.c.job == name, attempts.c.number == number
        )
        record = (await connection.execute(query)).scalar_one_or_none()
        return None if record is None else self._codec.load_attempt(record)

    async def _save_attempt(self, connection: AsyncConnection, attempt: Attempt) -> None:
        row = {
            "job": attempt.job,
            "number": attempt.number,
            "record": self._codec.dump_attempt(attempt),
        }
        await connection.execute(sql.insert(attempts).prefix_with("OR REPLACE").values(row))

    def _event_row(self, name: str, event: Event) -> dict[str, object]:
        kind, record = self._codec.dump_body(event.body)
        return {
            "job": name,
            "sequence": event.sequence,
            "time": event.time.isoformat(),
            "attempt": event.attempt,
            "kind": kind,
            "record": record,
        }

    def _event(self, row: sql.Row[Any]) -> Event:
        body = self._codec.load_body(row.kind, row.record)
        return Event(row.sequence, datetime.fromisoformat(row.time), row.attempt, body)


def _on_connect(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def _prepare(connection: AsyncConnection, path: Path) -> None:
    version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
    if version not in (0, SCHEMA_VERSION):
        raise GraftError(
            Reason.INTERNAL,
            f"{path} has schema version {version}, this trainer knows {SCHEMA_VERSION}",
            next_step="Start the version of Graft that made it, or move the file away.",
        )
    await connection.run_sync(metadata.create_all)
    await connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
