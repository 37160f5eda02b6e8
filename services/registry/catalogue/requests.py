"""Request ids: a repeated request answers what the first one did (AIP-155)."""

from __future__ import annotations

from collections.abc import Collection

from graft.errors import GraftError, Reason
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.base import RequestKey
from services.registry.catalogue.change import Change
from services.registry.catalogue.rows import dump, kind_of, load_resource, to_us
from services.registry.catalogue.tables import request_keys
from services.registry.domain import Resource


async def find_answer(
    connection: AsyncConnection, namespace: str, key: RequestKey | None
) -> Resource | None:
    """What the first request under this key was answered; None when this is the first."""
    if key is None:
        return None
    row = (
        await connection.execute(
            select(request_keys).where(
                request_keys.c.namespace == namespace, request_keys.c.request_id == key.request_id
            )
        )
    ).one_or_none()
    if row is None:
        return None
    check_same(key, row.request_hash)
    return load_resource(row.kind, row.resource)


def check_same(key: RequestKey, request_hash: str) -> None:
    """Raises REQUEST_ID_REUSED where the first request under this key had another hash."""
    if request_hash != key.request_hash:
        raise GraftError(
            Reason.REQUEST_ID_REUSED,
            f"The request id {key.request_id!r} was used before for another request",
            next_step="Make a new request id for every new request; repeat one only to try again.",
            request_id=key.request_id,
        )


async def find_answers(
    connection: AsyncConnection, wanted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, Resource]]:
    """The hash and the answer of each (namespace, request id) that was used before."""
    if not wanted:
        return {}
    query = select(request_keys).where(
        request_keys.c.namespace.in_({namespace for namespace, _ in wanted}),
        request_keys.c.request_id.in_({request_id for _, request_id in wanted}),
    )
    return {
        (row.namespace, row.request_id): (row.request_hash, load_resource(row.kind, row.resource))
        for row in await connection.execute(query)
        if (row.namespace, row.request_id) in wanted
    }


async def keep_answer(
    change: Change, namespace: str, key: RequestKey | None, answer: Resource
) -> None:
    """Stores what a request was answered, in the transaction that did it."""
    if key is not None:
        await change.connection.execute(
            insert(request_keys).values(
                namespace=namespace,
                request_id=key.request_id,
                request_hash=key.request_hash,
                kind=kind_of(answer),
                resource=dump(answer, type(answer)),
                time_us=to_us(change.now),
            )
        )
