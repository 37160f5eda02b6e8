"""Who agrees with a version's promotion, in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from graft.errors import GraftError, Reason
from graft.names import namespace_of, version_name
from sqlalchemy import ColumnElement, and_, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.catalogue.tables import approvals
from services.registry.domain import Approval
from services.registry.errors import deleted, invalid


async def read_approvals(
    connection: AsyncConnection, parent: str, numbers: Sequence[int], alias: str
) -> dict[int, list[Approval]]:
    """Approvals of versions by number, for an alias or for every alias."""
    query = select(approvals).where(
        approvals.c.parent == parent,
        approvals.c.number.in_(numbers),
        approvals.c.alias.in_(("", alias)),
    )
    found: dict[int, list[Approval]] = {number: [] for number in numbers}
    for row in await connection.execute(query):
        found[row.number].append(_approval(row))
    return found


class Approvals:
    """Approvals of versions.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def approve(self, parent: str, number: int, alias: str, reason: str) -> Approval:
        """Notes that the caller agrees; again, it stays as it was.

        Raises:
            GraftError: VERSION_NOT_FOUND, DELETED; INVALID_REQUEST for a caller without a name.
        """
        return await self._database.change(
            lambda change: _approve(change, parent, number, alias, reason)
        )

    async def revoke(self, parent: str, number: int, alias: str) -> Approval:
        """Takes the caller's approval back.

        Raises:
            GraftError: APPROVAL_NOT_FOUND.
        """
        return await self._database.change(lambda change: _revoke(change, parent, number, alias))

    async def list(self, parent: str, number: int) -> Sequence[Approval]:
        """A version's approvals, oldest first. Raises VERSION_NOT_FOUND."""

        async def read(connection: AsyncConnection) -> list[Approval]:
            await read_version(connection, parent, number)
            query = (
                select(approvals)
                .where(approvals.c.parent == parent, approvals.c.number == number)
                .order_by(approvals.c.create_time_us, approvals.c.actor)
            )
            return [_approval(row) for row in await connection.execute(query)]

        return await self._database.read(read)


async def _find(change: Change, parent: str, number: int, alias: str) -> Approval | None:
    query = select(approvals).where(_mine(change, parent, number, alias))
    row = (await change.connection.execute(query)).one_or_none()
    return None if row is None else _approval(row)


def _mine(change: Change, parent: str, number: int, alias: str) -> ColumnElement[bool]:
    return and_(
        approvals.c.parent == parent,
        approvals.c.number == number,
        approvals.c.alias == alias,
        approvals.c.actor == change.caller.actor,
    )


async def _approve(change: Change, parent: str, number: int, alias: str, reason: str) -> Approval:
    name = version_name(parent, number)
    if not change.caller.actor:
        raise invalid(
            f"{name} cannot be approved by somebody without a name",
            "Say who you are: GRAFT_ACTOR, or Client(actor=...).",
        )
    version = await read_version(change.connection, parent, number)
    if version.life.deleted:
        raise deleted("version", name, version.life)
    before = await _find(change, parent, number, alias)
    if before is not None:
        return before
    approval = Approval(parent, number, alias, change.caller.actor, reason, change.now)
    await change.connection.execute(
        insert(approvals).values(
            parent=parent,
            number=number,
            alias=alias,
            actor=approval.actor,
            reason=reason,
            create_time_us=rows.to_us(change.now),
        )
    )
    detail = {"action": "approved", "alias": alias, "reason": reason}
    change.audit(namespace_of(parent), name, detail)
    return approval


async def _revoke(change: Change, parent: str, number: int, alias: str) -> Approval:
    name = version_name(parent, number)
    before = await _find(change, parent, number, alias)
    if before is None:
        raise GraftError(
            Reason.APPROVAL_NOT_FOUND,
            f"{change.caller.actor or 'Somebody without a name'} has not approved {name}"
            + (f" for {alias}" if alias else ""),
            next_step="List its approvals with `graft adapters approvals`.",
            resource=name,
        )
    await change.connection.execute(delete(approvals).where(_mine(change, parent, number, alias)))
    change.audit(namespace_of(parent), name, {"action": "revoked", "alias": alias})
    return before


def _approval(row: rows.AnyRow) -> Approval:
    time = rows.from_us(row.create_time_us)
    return Approval(row.parent, row.number, row.alias, row.actor, row.reason, time)
