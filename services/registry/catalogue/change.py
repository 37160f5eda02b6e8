"""One change of the catalogue while it is made: its statements, and the notes that end it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from graft.digests import audit_digest
from sqlalchemy import Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.caller import Caller
from services.registry.catalogue import tables
from services.registry.catalogue.rows import dump, kind_of, name_of, parent_of, to_us
from services.registry.domain import Action, Resource

Rows = Sequence[dict[str, Any]]


class Change:
    """A transaction, or a part of one, that may change something.

    connection runs its statements; now is the time of everything in it; caller is who asked for it.
    What is noted with record(), audit() and add() is written at the transaction's end.
    """

    def __init__(
        self, connection: AsyncConnection, revision: int, now: datetime, caller: Caller
    ) -> None:
        self.connection, self.now, self.caller = connection, now, caller
        self._revision = revision
        self.added: dict[Table, list[dict[str, Any]]] = {}
        self.superseded: list[tuple[Table, Mapping[str, Any]]] = []
        self.audited: list[dict[str, Any]] = []

    @property
    def next_revision(self) -> int:
        """The revision that record() gives next."""
        return self._revision + 1

    @property
    def recorded(self) -> bool:
        """Whether there is an event."""
        return tables.events in self.added

    def add(self, table: Table, rows: Rows) -> None:
        """Notes rows to be inserted, for what nothing in the transaction reads."""
        if rows:
            self.added.setdefault(table, []).extend(rows)

    def supersede(self, table: Table, key: Mapping[str, Any]) -> None:
        """Notes that rows of that key, which earlier changes of the same transaction may have noted,
        are not to be inserted."""
        self.superseded.append((table, key))

    def new_etag(self, name: str) -> str:
        """An etag that nothing of that name had before."""
        return hashlib.sha256(f"{name} {self.next_revision}".encode()).hexdigest()[:16]

    def record(
        self,
        namespace: str,
        resource: Resource,
        action: Action = Action.CREATED,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Notes the event of a change to a resource, and its audit entry."""
        self._revision += 1
        event = {
            "revision": self._revision,
            "namespace": namespace,
            "parent": parent_of(resource),
            "kind": kind_of(resource),
            "action": action.value,
            "resource": dump(resource, type(resource)),
            "time_us": to_us(self.now),
        }
        self.add(tables.events, [event])
        told = {"action": action.value, "revision": self._revision, **(detail or {})}
        self.audit(namespace, name_of(resource), told)

    def audit(self, namespace: str, resource: str, detail: Mapping[str, Any]) -> None:
        """Notes an audit entry; record() does it by itself for what has an event."""
        self.audited.append(
            {
                "namespace": namespace,
                "time_us": to_us(self.now),
                "actor": self.caller.actor,
                "method": self.caller.method,
                "resource": resource,
                "request_id": self.caller.request_id,
                "detail": json.dumps(detail, sort_keys=True),
            }
        )


class Ledger:
    """What the changes of one transaction noted, and the counters of `revisions` after them."""

    def __init__(self, revision: int, audit: int, audit_digest: str) -> None:
        self.revision = revision
        self._audit, self._audit_digest = audit, audit_digest
        self._added: dict[Table, list[dict[str, Any]]] = {}

    @property
    def has_events(self) -> bool:
        """Whether there are events."""
        return tables.events in self._added

    @property
    def changed(self) -> bool:
        """Whether the counters moved."""
        return self.has_events or tables.audit_entries in self._added

    def take(self, change: Change) -> None:
        """Adds what a change noted that is not undone any more."""
        self.revision = change.next_revision - 1
        for table, key in change.superseded:
            noted = self._added.get(table, [])
            noted[:] = [row for row in noted if not key.items() <= row.items()]
        for table, rows in change.added.items():
            self._added.setdefault(table, []).extend(rows)
        for entry in change.audited:
            self._audit += 1
            numbered = {"number": self._audit, **entry}
            self._audit_digest = audit_digest(self._audit_digest, **numbered)
            numbered["digest"] = self._audit_digest
            self._added.setdefault(tables.audit_entries, []).append(numbered)

    def counters(self) -> dict[str, Any]:
        """Columns of `revisions`."""
        return {
            "value": self.revision,
            "audit": self._audit,
            "audit_digest": self._audit_digest,
        }

    async def store(self, connection: AsyncConnection) -> None:
        """Writes what was noted."""
        for table, rows in self._added.items():
            if rows:
                await connection.execute(insert(table), rows)
