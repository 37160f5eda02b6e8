"""Leases: whoever serves, trains on or uploads bytes says so, and the registry's collection leaves them.

A lease protects and never hinders: what it is held for goes on when the registry cannot be asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

import grpc

from graft.channel import call_metadata, rpc_errors
from graft.errors import GraftError, Reason
from graft.registry.v1 import operations_service_pb2 as pb
from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceStub

_PEER = "the registry"
_CALL_S = 10.0
_RETRY_S = 2.0
_MOST_TARGETS = 1000
_log = logging.getLogger("graft.leases")
Warn = Callable[[str], None]


def default_holder(kind: str) -> str:
    """A holder's name for this process: "inference/host-7/4711"."""
    return f"{kind}/{socket.gethostname()}/{os.getpid()}"


class LeaseKeeper:
    """Holds one lease between start() and close(), or during an `async with`; renews it by itself.

    Args:
        channel: open, to the registry.
        holder: who, for people.
        purpose: what for: "serve", "train", "upload".
        targets: names of versions and digests; or what answers them, asked again at each renewal.
        ttl_s: for how long the bytes stay when this process dies; renewed after a third of it.
        warn: told once when the lease cannot be held, for example because the registry is away.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        holder: str,
        purpose: str,
        targets: Iterable[str] | Callable[[], Iterable[str]],
        *,
        ttl_s: float = 60.0,
        warn: Warn = _log.warning,
    ) -> None:
        self._stub = OperationsServiceStub(channel)
        self._holder, self._purpose, self._ttl_s, self._warn = holder, purpose, ttl_s, warn
        fixed = () if callable(targets) else tuple(targets)
        self._targets = targets if callable(targets) else lambda: fixed
        self._metadata = call_metadata(actor=holder)
        self._unknown: set[str] = set()
        self._told = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.name = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Holds the targets when it returns, unless the registry cannot be asked."""
        await self._try()
        self._task = asyncio.create_task(self._keep())

    def changed(self) -> None:
        """The targets are others now: says so soon rather than at the next renewal."""
        self._wake.set()

    async def close(self) -> None:
        """Lets go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(GraftError):
            await self._release()

    async def _keep(self) -> None:
        held = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / 3 if held else _RETRY_S):
                    await self._wake.wait()
            self._wake.clear()
            held = await self._try()

    async def _try(self) -> bool:
        """Acquires or renews; says whether what there is to hold is held."""
        try:
            await self._hold()
        except GraftError as error:
            if not self._told:
                self._warn(f"The lease of {self._holder} is not held: {error}")
            self._told = True
            return False
        self._told = False
        return True

    async def _hold(self) -> None:
        targets = self._wanted()
        while targets:
            try:
                if self.name:
                    await self._renew(targets)
                else:
                    await self._acquire(targets)
                return
            except GraftError as error:
                gone = error.metadata.get("resource", "")
                if error.reason is Reason.LEASE_NOT_FOUND and self.name:
                    self.name = ""
                elif gone in targets:
                    # Purged, or of another registry: the others are still to be held.
                    self._unknown.add(gone)
                    targets = self._wanted()
                else:
                    raise
        await self._release()

    def _wanted(self) -> list[str]:
        wanted = set(self._targets())
        self._unknown &= wanted
        return sorted(wanted - self._unknown)[:_MOST_TARGETS]

    async def _acquire(self, targets: list[str]) -> None:
        request = pb.AcquireLeaseRequest(
            holder=self._holder,
            purpose=self._purpose,
            targets=targets,
            ttl_s=self._ttl_s,
            request_id=uuid.uuid4().hex,
        )
        with rpc_errors(_PEER):
            made = await self._stub.AcquireLease(request, timeout=_CALL_S, metadata=self._metadata)
        self.name = made.name

    async def _renew(self, targets: list[str]) -> None:
        request = pb.RenewLeaseRequest(name=self.name, targets=targets)
        with rpc_errors(_PEER):
            await self._stub.RenewLease(request, timeout=_CALL_S, metadata=self._metadata)

    async def _release(self) -> None:
        if self.name:
            request = pb.ReleaseLeaseRequest(name=self.name)
            self.name = ""
            with rpc_errors(_PEER):
                await self._stub.ReleaseLease(request, timeout=_RETRY_S, metadata=self._metadata)
