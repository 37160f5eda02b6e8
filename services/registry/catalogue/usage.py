"""What a namespace may use and what it uses, counted in the transaction that uses it."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from sqlalchemy import insert, select, update

from services.registry.catalogue.change import Change
from services.registry.catalogue.tables import namespaces


async def use(
    change: Change, namespace: str, *, size_bytes: int = 0, versions: int = 0, adapters: int = 0
) -> None:
    """Counts what is used more, or less; makes the namespace's row when it is the first.

    Raises:
        GraftError: QUOTA_EXCEEDED, with what is used, needed and allowed.
    """
    connection = change.connection
    more = {"bytes": size_bytes, "versions": versions, "adapters": adapters}
    row = (
        await connection.execute(select(namespaces).where(namespaces.c.namespace == namespace))
    ).one_or_none()
    if row is None:
        values = {f"used_{what}": amount for what, amount in more.items()}
        await connection.execute(insert(namespaces).values(namespace=namespace, **values))
        return
    used = row._asdict()
    for what, amount in more.items():
        allowed = used[f"max_{what}"]
        if amount > 0 and allowed is not None and used[f"used_{what}"] + amount > allowed:
            raise _exceeded(namespace, what, used[f"used_{what}"], amount, allowed)
    changed = {
        f"used_{what}": used[f"used_{what}"] + amount for what, amount in more.items() if amount
    }
    if changed:
        await connection.execute(
            update(namespaces).where(namespaces.c.namespace == namespace).values(changed)
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
