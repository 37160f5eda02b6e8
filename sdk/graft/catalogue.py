"""Bases in the registry, the pages of its lists, and its stream of changes."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, Unpack

from graft import convert
from graft.bases import read_base
from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.names import base_name, default_base_id, full_name, namespace_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import Base, Change, Version

_PEER = "the registry"
_PAGE_SIZE = 1000
T = TypeVar("T")


class Find(TypedDict, total=False):
    """What a list is asked for; everything may be left out.

    filter and order_by are written as docs/find.md says, for example 'labels.team = "a"' and
    "create_time desc". show_deleted: list what is deleted too. limit: at most this many; 0 for all.
    """

    filter: str
    order_by: str
    show_deleted: bool
    limit: int


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Page = TypeVar("Page", bound=_Page)


async def pages(get: Callable[[str], Awaitable[Page]]) -> AsyncIterator[Page]:
    """Every page of a list; get takes a page token, empty for the first."""
    token = ""
    while True:
        page = await get(token)
        yield page
        token = page.next_page_token
        if not token:
            return


def asked(find: Find) -> Mapping[str, Any]:
    """The fields of a List request."""
    return {
        "page_size": min(find.get("limit") or _PAGE_SIZE, _PAGE_SIZE),
        "filter": find.get("filter", ""),
        "order_by": find.get("order_by", ""),
        "show_deleted": find.get("show_deleted", False),
    }


async def listed(
    get: Callable[[str], Awaitable[Page]], items: Callable[[Page], Iterable[T]], find: Find
) -> list[T]:
    """The items of all pages, or as many as were asked for; get as in pages()."""
    found: list[T] = []
    limit, token = find.get("limit") or None, ""
    while True:
        page = await get(token)
        found += items(page)
        token = page.next_page_token
        if not token or (limit is not None and len(found) >= limit):
            return found[:limit]


async def versions_of(connection: Connection, parent: str, find: Find) -> list[Version]:
    """The versions of an adapter or of a base, newest first where no order is asked for.

    Raises:
        GraftError: ADAPTER_NOT_FOUND, BASE_NOT_FOUND; INVALID_FILTER, naming the position;
            INVALID_REQUEST (the order).
    """

    async def page(token: str) -> pb.ListVersionsResponse:
        request = pb.ListVersionsRequest(parent=parent, page_token=token, **asked(find))
        return await connection.call(connection.registry.ListVersions, request, _PEER)

    return await listed(page, lambda answer: map(convert.version, answer.versions), find)


class Bases:
    """The bases of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    async def list(self, **find: Unpack[Find]) -> Sequence[Base]:
        """Bases, by name where no order is asked for, without their number of modules.

        Raises:
            GraftError: INVALID_FILTER, naming the position; INVALID_REQUEST (the order).
        """
        stub, parent = self._connection.registry, namespace_name(self._namespace)

        async def page(token: str) -> pb.ListBasesResponse:
            request = pb.ListBasesRequest(parent=parent, page_token=token, **asked(find))
            return await self._connection.call(stub.ListBases, request, _PEER)

        return await listed(page, lambda answer: map(convert.base, answer.bases), find)

    async def get(self, base: str) -> Base:
        """One base.

        Raises:
            GraftError: BASE_NOT_FOUND.
        """
        full = base if base.startswith("namespaces/") else base_name(self._namespace, base)
        stub, request = self._connection.registry, pb.GetBaseRequest(name=full)
        return convert.base(await self._connection.call(stub.GetBase, request, _PEER))

    async def add(self, folder: str | Path, name: str | None = None) -> Base:
        """Records a base model's folder; doing it again answers the stored one.

        Args:
            folder: config.json, a tokenizer and safetensors files.
            name: its name; by default the folder's.

        Raises:
            GraftError: NOT_A_MODEL; ALREADY_EXISTS when another model has the name.
        """
        path = Path(folder).absolute()
        full = base_name(self._namespace, name or default_base_id(path.name))
        read = await asyncio.to_thread(read_base, path, full)
        stub, request = self._connection.registry, pb.CreateBaseRequest(base=read)
        return convert.base(await self._connection.call(stub.CreateBase, request, _PEER))

    async def resolve(self, base: str | Path) -> Base:
        """The base that a name or folder means; a folder is recorded when it is not yet.

        Raises:
            GraftError: BASE_NOT_FOUND, NOT_A_MODEL, INVALID_REQUEST when base is empty.
        """
        if not str(base):
            raise GraftError(
                Reason.INVALID_REQUEST,
                "Neither the adapter nor its adapter_config.json says which base it is for",
                next_step="Name it: base=FOLDER, or --base FOLDER on the command line.",
            )
        if Path(base).is_dir():
            return await self.add(base)
        return await self.get(
            str(base) if str(base).startswith("namespaces/") else default_base_id(str(base))
        )


async def watch(
    connection: Connection,
    namespace: str,
    after_revision: int | None,
    resource: str = "",
    kinds: Sequence[str] = (),
) -> AsyncGenerator[Change, None]:
    """Changes in a namespace, in order, without end; see Client.watch."""
    stub, parent = connection.registry, namespace_name(namespace)
    if after_revision is None:
        request = pb.ListAliasesRequest(parent=f"{parent}/adapters/-")
        after_revision = (await connection.call(stub.ListAliases, request, _PEER)).revision
    seen = after_revision
    wanted = full_name(resource, namespace) if resource else parent

    def open_stream() -> AsyncGenerator[pb.WatchResponse, None]:
        return connection.stream(
            stub.Watch,
            pb.WatchRequest(parent=wanted, after_revision=seen, kinds=kinds),
            _PEER,
        )

    async def finished() -> bool:
        return False

    async with aclosing(connection.resumed(open_stream, finished)) as messages:
        async for message in messages:
            change = convert.change(message)
            seen = max(seen, message.revision)
            if change is not None:
                yield change
