"""Moves of aliases in SQL: compare-and-set behind policies and gates, with the history of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from graft.errors import GraftError, Reason
from graft.names import namespace_of, version_name
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.approvals import read_approvals
from services.registry.catalogue.base import AliasMove, RequestKey
from services.registry.catalogue.change import Change
from services.registry.catalogue.lives import require_live
from services.registry.catalogue.move_checks import (
    check_expected,
    check_one_base,
    check_protected,
)
from services.registry.catalogue.policies import read_policy
from services.registry.catalogue.requests import find_answer, keep_answer
from services.registry.catalogue.splits import Split, advanced, rollout_of, split_of, taken_out
from services.registry.catalogue.tables import alias_moves, aliases, versions
from services.registry.domain import (
    Action,
    Alias,
    AliasPolicy,
    Canary,
    Condition,
    GateReport,
    MetricCondition,
    Version,
)
from services.registry.errors import deleted, not_found
from services.registry.gates.evaluate import GateContext, evaluate


async def find_alias(connection: AsyncConnection, name: str) -> Alias | None:
    """The alias of that name, if there is one."""
    row = (await connection.execute(select(aliases).where(aliases.c.name == name))).one_or_none()
    return None if row is None else rows.alias_of(row)


async def move_alias(change: Change, move: AliasMove, key: RequestKey | None) -> Alias:
    """See Catalogue.move_alias."""
    parent, namespace = move.name.rsplit("/", 2)[0], namespace_of(move.name)
    answered = await find_answer(change.connection, namespace, key)
    if answered is not None:
        assert isinstance(answered, Alias), "the hash holds the kind of request"
        return answered
    now = await find_alias(change.connection, move.name)
    await require_live(change.connection, parent)
    check_expected(move, parent, now)
    policy = await read_policy(change.connection, move.name)
    check_protected(move, policy, now)
    split = await _wanted(change, move, now)
    found = await _versions(change.connection, parent, split)
    moved = now
    if now is None or split_of(now) != split:
        report = await _gate(change, move, policy, now, list(found.values()))
        moved = _moved(change, move, now, split, found, report)
        if not move.validate_only:
            await _store(change, namespace, moved, is_new=now is None)
    assert moved is not None, "an alias that is not there yet moves"
    if not move.validate_only:
        await keep_answer(change, namespace, key, moved)
    return moved


async def delete_alias(change: Change, name: str, etag: str | None, reason: str) -> Alias:
    """See Catalogue.delete_alias."""
    now = await find_alias(change.connection, name)
    if now is None:
        raise not_found("alias", name)
    check_expected(AliasMove(name, None, None, etag, "", reason), now.parent, now)
    policy = await read_policy(change.connection, name)
    if policy is not None and policy.protected:
        raise GraftError(
            Reason.PROTECTED,
            f"{name} is protected, so it cannot be deleted",
            next_step="Change its policy first (`graft adapters protect --off`).",
            resource=name,
        )
    gone = replace(
        now,
        etag=change.new_etag(name),
        actor=change.caller.actor,
        reason=reason,
        update_time=change.now,
        revision=change.next_revision,
        gate_report=None,
        deleted=True,
    )
    await change.connection.execute(delete(aliases).where(aliases.c.name == name))
    row = rows.alias_row(gone, namespace_of(name))
    await change.connection.execute(insert(alias_moves).values({**row, "deleted": True}))
    change.record(namespace_of(name), gone, Action.DELETED, {"reason": reason})
    return gone


def _moved(
    change: Change,
    move: AliasMove,
    now: Alias | None,
    split: Split,
    found: dict[int, Version],
    report: GateReport | None,
) -> Alias:
    number, canaries = split.version, split.canaries
    return Alias(
        name=move.name,
        parent=move.name.rsplit("/", 2)[0],
        version=number,
        version_digest=found[number].digest,
        previous_version=0 if now is None else now.version,
        etag="" if move.validate_only else change.new_etag(move.name),
        actor=move.actor,
        reason=move.reason,
        update_time=change.now,
        revision=0 if move.validate_only else change.next_revision,
        canaries=tuple(Canary(one, found[one].digest, weight) for one, weight in canaries),
        gate_report=report,
        rollout=split.rollout,
        rollout_report=move.report,
    )


async def _store(change: Change, namespace: str, moved: Alias, is_new: bool) -> None:
    row = rows.alias_row(moved, namespace)
    if is_new:
        await change.connection.execute(insert(aliases).values(row))
    else:
        await change.connection.execute(
            update(aliases).where(aliases.c.name == moved.name).values(row)
        )
    # At once: a rollback may come next in the same transaction, and looks there.
    await change.connection.execute(insert(alias_moves).values({**row, "deleted": False}))
    action = Action.CREATED if is_new else Action.UPDATED
    change.record(namespace, moved, action, _audited(moved))


def _audited(moved: Alias) -> dict[str, object]:
    before = moved.previous_version
    said: dict[str, object] = {
        "version": version_name(moved.parent, moved.version),
        "previous_version": version_name(moved.parent, before) if before else "",
        "canaries": {str(one.version): one.weight_percent for one in moved.canaries},
        "reason": moved.reason,
    }
    for name in ("rollout", "rollout_report"):
        value = getattr(moved, name)
        if value is not None:
            said[name] = asdict(value)
    return said


async def _wanted(change: Change, move: AliasMove, now: Alias | None) -> Split:
    if move.version is not None:
        return Split(move.version, move.canaries, rollout_of(move, now))
    if now is None:
        raise not_found("alias", move.name)
    if move.take_out:
        return taken_out(now, move.take_out)
    if move.advance:
        return advanced(now, change.now)
    query = (
        select(alias_moves)
        .where(alias_moves.c.name == move.name, alias_moves.c.revision < now.revision)
        .order_by(alias_moves.c.revision.desc())
        .limit(1)
    )
    row = (await change.connection.execute(query)).one_or_none()
    if row is None:
        raise GraftError(
            Reason.NO_PREVIOUS_VERSION,
            f"{move.name} has named no other version than {version_name(now.parent, now.version)}",
            next_step="Point it at a version with SetAlias (`graft adapters promote`).",
            resource=move.name,
        )
    return split_of(rows.alias_of(row))


async def _versions(connection: AsyncConnection, parent: str, split: Split) -> dict[int, Version]:
    """The versions of a split by number. Raises VERSION_NOT_FOUND, DELETED, WRONG_BASE."""
    named = split.numbers
    wanted = [*named, *split.shadows]
    query = select(versions).where(versions.c.parent == parent, versions.c.number.in_(wanted))
    found = {row.number: rows.version_of(row) for row in await connection.execute(query)}
    for number in wanted:
        if number not in found:
            raise not_found("version", version_name(parent, number))
        if found[number].life.deleted:
            raise deleted("version", version_name(parent, number), found[number].life)
    check_one_base([found[number] for number in wanted])
    return {number: found[number] for number in named}


async def _gate(
    change: Change,
    move: AliasMove,
    policy: AliasPolicy | None,
    now: Alias | None,
    found: Sequence[Version],
) -> GateReport | None:
    """Decides for versions that the alias does not name yet; None where nothing is to be decided."""
    conditions = (*(policy.conditions if policy is not None else ()), *move.gate)
    named = () if now is None else (now.version, *(one.version for one in now.canaries))
    fresh = [version for version in found if version.number not in named]
    # Going back must work in the worst night, also to what would not pass today.
    if not conditions or not fresh or move.version is None:
        return None
    parent, alias = move.name.rsplit("/", 2)[0], move.name.rpartition("/")[2]
    numbers = [version.number for version in fresh]
    context = GateContext(
        named=await _named(change.connection, parent, conditions),
        approvals=await read_approvals(change.connection, parent, numbers, alias),
        mover=move.actor,
    )
    report = evaluate(conditions, fresh, context)
    if not report.passed:
        raise _refused(move, parent, report)
    return report


async def _named(
    connection: AsyncConnection, parent: str, conditions: Sequence[Condition]
) -> dict[str, Version | None]:
    wanted = {
        condition.alias
        for condition in conditions
        if isinstance(condition, MetricCondition) and condition.value is None
    }
    found: dict[str, Version | None] = {}
    for alias in sorted(wanted):
        query = (
            select(versions)
            .join(
                aliases,
                (aliases.c.parent == versions.c.parent) & (aliases.c.version == versions.c.number),
            )
            .where(aliases.c.name == f"{parent}/aliases/{alias}")
        )
        row = (await connection.execute(query)).one_or_none()
        found[alias] = None if row is None else rows.version_of(row)
    return found


def _refused(move: AliasMove, parent: str, report: GateReport) -> GraftError:
    failed = [result for result in report.results if not result.passed]
    first = failed[0]
    numbers = {"actual": first.actual, "bound": first.bound}
    return GraftError(
        Reason.GATE_REFUSED,
        f"{move.name} was not moved to {version_name(parent, first.version)}: the condition "
        f"{first.condition!r} does not hold: " + "; ".join(result.detail for result in failed),
        next_step="Promote a version for which it holds, or change the alias' policy.",
        resource=move.name,
        version=version_name(parent, first.version),
        condition=first.condition,
        **{name: f"{value:g}" for name, value in numbers.items() if value is not None},
    )
