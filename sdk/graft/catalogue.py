"""Bases in the registry, the pages of its lists, and its stream of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, TypeVar

from graft import convert
from graft.bases import read_base
from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.names import base_name, default_base_id, namespace_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import Base, Change

_PEER = "the registry"


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


class Bases:
    """The bases of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    async def list(self) -> Sequence[Base]:
        """All bases, by name, without their number of modules."""
        stub, parent = self._connection.registry, namespace_name(self._namespace)

        async def page(token: str) -> pb.ListBasesResponse:
            request = pb.ListBasesRequest(parent=parent, page_size=1000, page_token=token)
            return await self._connection.call(stub.ListBases, request, _PEER)

        return [convert.base(one) async for answer in pages(page) for one in answer.bases]

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
    connection: Connection, namespace: str, after_revision: int | None
) -> AsyncGenerator[Change, None]:
    """Changes in a namespace, in order, without end; see Client.watch."""
    stub, parent = connection.registry, namespace_name(namespace)
    if after_revision is None:
        request = pb.ListAliasesRequest(parent=f"{parent}/adapters/-")
        after_revision = (await connection.call(stub.ListAliases, request, _PEER)).revision
    seen = after_revision

    def open_stream() -> AsyncGenerator[pb.WatchResponse, None]:
        return connection.stream(
            stub.Watch, pb.WatchRequest(parent=parent, after_revision=seen), _PEER
        )

    async def finished() -> bool:
        return False

    async with aclosing(connection.resumed(open_stream, finished)) as messages:
        async for message in messages:
            change = convert.change(message)
            seen = max(seen, message.revision)
            if change is not None:
                yield change
