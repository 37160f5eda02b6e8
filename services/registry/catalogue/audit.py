"""The audit log, read. Who writes it is change.py; nobody changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.database import Database
from services.registry.catalogue.rows import AnyRow, from_us
from services.registry.catalogue.tables import audit_entries
from services.registry.domain import Page


@dataclass(frozen=True, slots=True)
class Entry:
    """One mutation that happened; see AuditEntry."""

    number: int
    namespace: str
    time: datetime
    actor: str
    method: str
    resource: str
    request_id: str
    detail_json: str
    digest: str


class AuditLog:
    """The audit log of a catalogue.

    Args:
        database: runs the queries.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, after: int, limit: int, namespace: str | None = None, resource: str = ""
    ) -> Page[Entry]:
        """Entries after a number, oldest first.

        Args:
            after: the number.
            limit: how many at most.
            namespace: whose; None for all.
            resource: only its own and those of what is below it.
        """
        columns = audit_entries.c
        query = select(audit_entries).where(columns.number > after).order_by(columns.number)
        if namespace is not None:
            query = query.where(columns.namespace == namespace)
        if resource:
            below = func.substr(columns.resource, 1, len(resource) + 1) == resource + "/"
            query = query.where(or_(columns.resource == resource, below))

        async def read(connection: AsyncConnection) -> Sequence[AnyRow]:
            found: Sequence[AnyRow] = (await connection.execute(query.limit(limit + 1))).all()
            return found

        found = await self._database.read(read)
        entries = [_entry(row) for row in found[:limit]]
        return Page(entries, str(entries[-1].number) if len(found) > limit else None)


def _entry(row: AnyRow) -> Entry:
    return Entry(
        number=row.number,
        namespace=row.namespace,
        time=from_us(row.time_us),
        actor=row.actor,
        method=row.method,
        resource=row.resource,
        request_id=row.request_id,
        detail_json=row.detail,
        digest=row.digest,
    )
