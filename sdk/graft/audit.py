"""The registry's audit log: read, followed, exported, and its chain of digests checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from graft.catalogue import pages
from graft.connection import Connection
from graft.digests import audit_digest
from graft.errors import GraftError, Reason
from graft.names import namespace_name
from graft.registry.v1 import operations_service_pb2 as pb

_PEER = "the registry"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One mutation that happened. digest is over this entry and the digest of the one before."""

    number: int
    namespace: str
    time: datetime
    actor: str
    method: str
    resource: str
    request_id: str
    detail_json: str
    digest: str

    def to_json(self) -> str:
        """One line of JSON; from_json() reads it."""
        return json.dumps({**asdict(self), "time": self.time.isoformat()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> AuditEntry:
        """An entry that to_json() wrote.

        Raises:
            GraftError: BAD_DATA.
        """
        try:
            fields = json.loads(line)
            entry = cls(**{**fields, "time": datetime.fromisoformat(fields["time"])})
            if entry.time.tzinfo is None or not isinstance(entry.number, int):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise GraftError(
                Reason.BAD_DATA,
                f"{line[:80]!r} is no entry of an audit log",
                next_step="Use a file that `graft audit --json-lines FILE` wrote.",
            ) from None
        return entry


class Audit:
    """The audit log of a namespace, or with everywhere=True of the whole registry."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    async def entries(
        self, after: int = 0, *, resource: str = "", everywhere: bool = False
    ) -> AsyncGenerator[AuditEntry, None]:
        """Entries after a number, oldest first.

        Args:
            after: the number.
            resource: only those of this resource's full name and of what is below it.
            everywhere: of all namespaces.
        """
        stub = self._connection.operations
        parent = "namespaces/-" if everywhere else namespace_name(self._namespace)

        async def page(token: str) -> pb.ListAuditEntriesResponse:
            request = pb.ListAuditEntriesRequest(
                parent=parent,
                page_size=1000,
                page_token=token,
                after_number=after,
                resource=resource,
            )
            return await self._connection.call(stub.ListAuditEntries, request, _PEER)

        async for answer in pages(page):
            for message in answer.entries:
                yield _entry(message)

    async def follow(
        self, after: int = 0, *, resource: str = "", everywhere: bool = False
    ) -> AsyncGenerator[AuditEntry, None]:
        """Entries after a number, and those to come, without end. Args as entries."""
        while True:
            async for entry in self.entries(after, resource=resource, everywhere=everywhere):
                after = entry.number
                yield entry
            await asyncio.sleep(_LOOK_S)

    async def verify(self, known: str = "") -> AuditEntry | None:
        """Checks the digests of the whole log and answers its last entry.

        Args:
            known: a digest that was the last one once: it must still be there.

        Raises:
            GraftError: DIGEST_MISMATCH naming the first entry that is not as it was written.
        """
        chain = Chain(known)
        async for entry in self.entries(everywhere=True):
            chain.add(entry)
        chain.end()
        return chain.last


class Chain:
    """Checks entries one after another.

    Args:
        known: a digest that one of them must have; empty for none.
        begins_anywhere: the first may have any number, as in a part of a log; its own digest is
            then taken as it is.
    """

    def __init__(self, known: str = "", begins_anywhere: bool = False) -> None:
        self._known, self._anywhere = known, begins_anywhere
        self.last: AuditEntry | None = None

    def add(self, entry: AuditEntry) -> None:
        """Raises DIGEST_MISMATCH when it is not what follows the last."""
        before, number = ("", 0) if self.last is None else (self.last.digest, self.last.number)
        is_first_of_part = self.last is None and self._anywhere and entry.number > 1
        if not is_first_of_part:
            if entry.number != number + 1:
                raise _broken(entry.number, f"after entry {number} comes entry {entry.number}")
            if digest_of(entry, before) != entry.digest:
                raise _broken(entry.number, f"entry {entry.number} is not as it was written")
        if entry.digest == self._known:
            self._known = ""
        self.last = entry

    def end(self) -> None:
        """Raises DIGEST_MISMATCH when the known digest was not met."""
        if self._known:
            raise _broken(0, f"no entry has the digest {self._known}, which one had")


def digest_of(entry: AuditEntry, before: str) -> str:
    """The digest that an entry must have; before is that of the one before, "" for the first."""
    return audit_digest(
        before,
        number=entry.number,
        namespace=entry.namespace,
        time_us=(entry.time - _EPOCH) // timedelta(microseconds=1),
        actor=entry.actor,
        method=entry.method,
        resource=entry.resource,
        request_id=entry.request_id,
        detail=entry.detail_json,
    )


def _broken(number: int, what: str) -> GraftError:
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"The audit log was changed: {what}",
        next_step="Trust nothing from there on; compare the database with a backup.",
        number=number,
    )


def _entry(message: pb.AuditEntry) -> AuditEntry:
    return AuditEntry(
        number=message.number,
        namespace=message.namespace,
        time=message.time.ToDatetime(UTC),
        actor=message.actor,
        method=message.method,
        resource=message.resource,
        request_id=message.request_id,
        detail_json=message.detail_json,
        digest=message.digest,
    )
