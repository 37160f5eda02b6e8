"""What must hold before an alias moves, in SQL."""

from __future__ import annotations

from dataclasses import dataclass

from graft.errors import GraftError, Reason
from graft.names import namespace_of
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.lives import require_live
from services.registry.catalogue.move_checks import not_a_mover
from services.registry.catalogue.tables import alias_policies
from services.registry.domain import Action, AliasPolicy, Condition


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy as it shall be; etag is what it must have now, None for no condition."""

    name: str
    protected: bool
    movers: tuple[str, ...]
    conditions: tuple[Condition, ...]
    etag: str | None
    reason: str


async def read_policy(connection: AsyncConnection, name: str) -> AliasPolicy | None:
    """The policy of an alias, where one was set."""
    query = select(alias_policies.c.policy).where(alias_policies.c.name == name)
    text = await connection.scalar(query)
    return None if text is None else rows.load(text, AliasPolicy)


class Policies:
    """The policies of aliases.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> AliasPolicy | None:
        """The policy of an alias; None where none was set."""
        return await self._database.read(lambda connection: read_policy(connection, name))

    async def set(self, new: NewPolicy) -> AliasPolicy:
        """Sets a policy.

        Raises:
            GraftError: ETAG_MISMATCH; PROTECTED when the policy that is there protects the alias
                and the caller is none of its movers; ADAPTER_NOT_FOUND, BASE_NOT_FOUND, DELETED.
        """
        return await self._database.change(lambda change: _set(change, new))


async def _set(change: Change, new: NewPolicy) -> AliasPolicy:
    parent = new.name.rsplit("/", 2)[0]
    await require_live(change.connection, parent)
    before = await read_policy(change.connection, new.name)
    if new.etag is not None and new.etag != (before.etag if before is not None else ""):
        raise GraftError(
            Reason.ETAG_MISMATCH,
            f"The policy of {new.name} was changed since it was read",
            next_step="Read it again with GetAliasPolicy and decide anew.",
            resource=new.name,
        )
    guarded = before is not None and before.protected and before.movers
    if before is not None and guarded and change.caller.actor not in before.movers:
        raise not_a_mover(new.name, change.caller.actor, before)
    policy = AliasPolicy(
        name=new.name,
        parent=parent,
        protected=new.protected,
        movers=new.movers,
        conditions=new.conditions,
        etag=change.new_etag(new.name),
        actor=change.caller.actor,
        update_time=change.now,
    )
    await _store(change, policy, is_new=before is None)
    action = Action.CREATED if before is None else Action.UPDATED
    change.record(namespace_of(new.name), policy, action, {"reason": new.reason})
    return policy


async def _store(change: Change, policy: AliasPolicy, is_new: bool) -> None:
    text = rows.dump(policy, AliasPolicy)
    if not is_new:
        await change.connection.execute(
            update(alias_policies).where(alias_policies.c.name == policy.name).values(policy=text)
        )
        return
    await change.connection.execute(
        insert(alias_policies).values(
            name=policy.name,
            namespace=namespace_of(policy.name),
            parent=policy.parent,
            policy=text,
        )
    )
