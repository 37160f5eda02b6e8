"""What a namespace may use and what it uses, counted in the transaction that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.rows import AnyRow
from services.registry.catalogue.tables import namespaces
from services.registry.domain import Page


@dataclass(frozen=True, slots=True)
class Quota:
    """What a namespace may use; None for no limit."""

    max_bytes: int | None = None
    max_versions: int | None = None
    max_adapters: int | None = None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace by its id, what it may use, and what its resources use that are not purged."""

    id: str
    quota: Quota
    used_bytes: int
    used_versions: int
    used_adapters: int


class Namespaces:
    """The namespaces of a catalogue: there is one from its first resource or quota on.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, namespace: str) -> Namespace:
        """Raises NAMESPACE_NOT_FOUND."""

        async def read(connection: AsyncConnection) -> AnyRow | None:
            query = select(namespaces).where(namespaces.c.namespace == namespace)
            return (await connection.execute(query)).one_or_none()

        row = await self._database.read(read)
        if row is None:
            raise GraftError(
                Reason.NAMESPACE_NOT_FOUND,
                f"There is no namespace namespaces/{namespace}",
                next_step="Create something in it, or set its quota.",
                resource=f"namespaces/{namespace}",
            )
        return _namespace_of(row)

    async def list(self, limit: int, after: str | None) -> Page[Namespace]:
        """Namespaces by name."""

        async def read(connection: AsyncConnection) -> list[Namespace]:
            query = select(namespaces).order_by(namespaces.c.namespace).limit(limit + 1)
            if after is not None:
                query = query.where(namespaces.c.namespace > after)
            return [_namespace_of(row) for row in await connection.execute(query)]

        found = await self._database.read(read)
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def set_quota(self, namespace: str, quota: Quota, reason: str) -> Namespace:
        """Sets all limits; one below what is used refuses growth only."""

        async def work(change: Change) -> Namespace:
            await use(change, namespace)
            limits = {
                "max_bytes": quota.max_bytes,
                "max_versions": quota.max_versions,
                "max_adapters": quota.max_adapters,
            }
            mine = namespaces.c.namespace == namespace
            await change.connection.execute(update(namespaces).where(mine).values(limits))
            detail = {"quota": limits, "reason": reason}
            change.audit(namespace, f"namespaces/{namespace}", detail)
            return _namespace_of(
                (await change.connection.execute(select(namespaces).where(mine))).one()
            )

        return await self._database.change(work)


async def use(
    change: Change, namespace: str, *, size_bytes: int = 0, versions: int = 0, adapters: int = 0
) -> None:
    """Counts what is used more, or less; makes the namespace's row when it is the first.

    Raises:
        GraftError: QUOTA_EXCEEDED, with what is used, needed and allowed.
    """
    connection = change.connection
    row = (
        await connection.execute(select(namespaces).where(namespaces.c.namespace == namespace))
    ).one_or_none()
    used = {} if row is None else row._asdict()
    now = more_used(namespace, used, size_bytes=size_bytes, versions=versions, adapters=adapters)
    if row is None:
        await connection.execute(insert(namespaces).values(namespace=namespace, **now))
    elif any(used[column] != value for column, value in now.items()):
        await connection.execute(
            update(namespaces).where(namespaces.c.namespace == namespace).values(now)
        )


def more_used(
    namespace: str,
    used: Mapping[str, Any],
    *,
    size_bytes: int = 0,
    versions: int = 0,
    adapters: int = 0,
) -> dict[str, int]:
    """What is used of a namespace's row after using more, or less.

    Raises:
        GraftError: QUOTA_EXCEEDED, with what is used, needed and allowed.
    """
    now: dict[str, int] = {}
    for what, amount in (("bytes", size_bytes), ("versions", versions), ("adapters", adapters)):
        before, allowed = used.get(f"used_{what}", 0), used.get(f"max_{what}")
        if amount > 0 and allowed is not None and before + amount > allowed:
            raise _exceeded(namespace, what, before, amount, allowed)
        now[f"used_{what}"] = before + amount
    return now


def _namespace_of(row: AnyRow) -> Namespace:
    return Namespace(
        row.namespace,
        Quota(row.max_bytes, row.max_versions, row.max_adapters),
        row.used_bytes,
        row.used_versions,
        row.used_adapters,
    )


def _exceeded(namespace: str, what: str, used: int, needed: int, allowed: int) -> GraftError:
    return GraftError(
        Reason.QUOTA_EXCEEDED,
        f"namespaces/{namespace} uses {used} of {allowed} {what}, and {needed} more are needed",
        next_step="Delete and purge what is not needed, or raise the limit with `graft quota set`.",
        resource=f"namespaces/{namespace}",
        limit=f"max_{what}",
        used=used,
        needed=needed,
        allowed=allowed,
    )
