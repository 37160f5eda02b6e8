"""The catalogue on SQLAlchemy: SQLite now, in statements that PostgreSQL also takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from graft.errors import GraftError, Reason
from graft.names import namespace_of
from sqlalchemy import Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import commits, models, moves, rows, signatures, stream, tables
from services.registry.catalogue.base import (
    AliasMove,
    Catalogue,
    EventFilter,
    NewAdapter,
    NewBase,
    NewSignature,
    NewVersion,
    RequestKey,
)
from services.registry.catalogue.batching import Batched
from services.registry.catalogue.change import Change
from services.registry.catalogue.commit_queue import CommitQueue
from services.registry.catalogue.database import Database
from services.registry.catalogue.requests import check_same, find_answers
from services.registry.domain import (
    Adapter,
    Alias,
    Base,
    BaseContent,
    Event,
    Page,
    Resource,
    Version,
)
from services.registry.errors import not_found

T = TypeVar("T")


class SqlCatalogue(Catalogue):
    """The catalogue in a database.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._commits = CommitQueue(database)
        self._answers = Batched(self._find_answers)

    async def create_adapter(self, new: NewAdapter, key: RequestKey | None) -> Adapter:
        return await self._database.change(lambda change: models.create_adapter(change, new, key))

    async def get_adapter(self, name: str) -> Adapter:
        return await self._database.read(lambda connection: models.read_adapter(connection, name))

    async def create_base(self, new: NewBase) -> Base:
        return await self._database.change(lambda change: models.create_base(change, new))

    async def get_base(self, name: str) -> Base:
        return await self._database.read(lambda connection: models.read_base(connection, name))

    async def base_content(self, base: str, fingerprint: str) -> BaseContent | None:
        return await self._database.read(
            lambda connection: models.read_content(connection, base, fingerprint)
        )

    async def find_committed(self, parent: str, key: RequestKey) -> Version | None:
        found = await self._answers.get(f"{namespace_of(parent)} {key.request_id}")
        if found is None:
            return None
        check_same(key, found[0])
        assert isinstance(found[1], Version), "the hash holds the kind of request"
        return found[1]

    async def commit_version(self, new: NewVersion, key: RequestKey | None) -> Version:
        return await self._commits.commit(new, key)

    async def get_version(self, parent: str, number: int) -> Version:
        return await self._database.read(
            lambda connection: commits.read_version(connection, parent, number)
        )

    async def get_version_by_alias(self, alias: str) -> Version:
        return await self._database.read(
            lambda connection: commits.read_version_by_alias(connection, alias)
        )

    async def sign_version(self, parent: str, number: int, new: NewSignature) -> Version:
        return await self._database.change(
            lambda change: signatures.sign_version(change, parent, number, new)
        )

    async def get_alias(self, name: str) -> Alias:
        found = await self._database.read(lambda connection: moves.find_alias(connection, name))
        if found is None:
            raise not_found("alias", name)
        return found

    async def list_aliases(self, namespace: str, parent: str | None) -> tuple[Sequence[Alias], int]:
        table = tables.aliases
        # What a deleted adapter or base has is hidden with it.
        query = select(table).order_by(table.c.name)
        for owner in (tables.adapters, tables.bases):
            ended = select(owner.c.name).where(owner.c.delete_time_us.is_not(None))
            query = query.where(table.c.parent.not_in(ended))
        if parent is None:
            query = query.where(table.c.namespace == namespace)
        else:
            query = query.where(table.c.parent == parent)

        async def read(connection: AsyncConnection) -> tuple[Sequence[Alias], int]:
            if parent is not None:
                await models.read_parent(connection, parent)
            revision = await connection.scalar(select(tables.revisions.c.value))
            found = (await connection.execute(query)).all()
            return [rows.alias_of(row) for row in found], int(revision or 0)

        return await self._database.snapshot(read)

    async def move_alias(self, move: AliasMove, key: RequestKey | None = None) -> Alias:
        try:
            return await self._database.change(lambda change: moves.move_alias(change, move, key))
        except GraftError as error:
            if error.reason is Reason.GATE_REFUSED and not move.validate_only:
                # Nothing was changed, but that somebody tried is worth knowing.
                detail = {"action": "refused", "error": error.message, **error.metadata}
                await self._database.change(lambda change: _audit(change, move.name, detail))
            raise

    async def delete_alias(self, name: str, etag: str | None, reason: str) -> Alias:
        return await self._database.change(
            lambda change: moves.delete_alias(change, name, etag, reason)
        )

    async def list_alias_history(self, name: str, limit: int, after: str | None) -> Page[Alias]:
        table = tables.alias_moves
        query = select(table).where(table.c.name == name).order_by(table.c.revision.desc())
        if after is not None:
            query = query.where(table.c.revision < int(after))
        page = await self._page(query, limit, rows.alias_of, lambda alias: str(alias.revision))
        if not page.items and after is None:
            raise not_found("alias", name)
        return page

    async def events(
        self, after: int, limit: int, which: EventFilter | None = None
    ) -> Sequence[Event]:
        return await self._database.read(
            lambda connection: stream.read_events(connection, after, limit, which or EventFilter())
        )

    async def compact(self, before: datetime, keep: int) -> int:
        # In changes of their own, so that others get their turn between them.
        while await self._database.change(
            lambda change: stream.compact_events(change, before, keep)
        ):
            pass
        while await self._database.change(lambda change: stream.forget_requests(change, before)):
            pass
        (row,) = await self._all(select(tables.revisions.c.compacted))
        return int(row.compacted)

    async def revision(self) -> int:
        (row,) = await self._all(select(tables.revisions.c.value))
        return int(row.value)

    async def counts(self) -> Mapping[str, int]:
        counted: tuple[Table, ...] = (tables.adapters, tables.bases, tables.versions)
        return {
            table.name: (
                await self._all(
                    select(func.count()).select_from(table).where(table.c.purge_time_us.is_(None))
                )
            )[0][0]
            for table in counted
        }

    async def close(self) -> None:
        await self._commits.close()
        await self._database.close()

    async def _find_answers(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Resource]]:
        wanted = [(namespace, one) for namespace, _, one in (key.partition(" ") for key in keys)]
        found = await self._database.read(lambda connection: find_answers(connection, wanted))
        return {f"{namespace} {one}": answer for (namespace, one), answer in found.items()}

    async def _page(
        self,
        query: Select[Any],
        limit: int,
        make: Callable[[rows.AnyRow], T],
        key: Callable[[T], str],
    ) -> Page[T]:
        found = await self._all(query.limit(limit + 1))
        items = [make(row) for row in found[:limit]]
        return Page(items, key(items[-1]) if len(found) > limit else None)

    async def _all(self, query: Select[Any]) -> Sequence[rows.AnyRow]:
        async def read(connection: AsyncConnection) -> Sequence[rows.AnyRow]:
            found: Sequence[rows.AnyRow] = (await connection.execute(query)).all()
            return found

        return await self._database.read(read)


async def _audit(change: Change, name: str, detail: Mapping[str, object]) -> None:
    change.audit(namespace_of(name), name, detail)
