"""What people say of adapters, bases and versions: descriptions and labels. What they consist of never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.names import full_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"
_TRIES = 10
_Message = pb.Adapter | pb.Base | pb.Version


@dataclass(frozen=True, slots=True)
class Described:
    """A resource and what is said of it; etag changes with that."""

    name: str
    description: str
    labels: Mapping[str, str]
    etag: str


class Metadata:
    """Descriptions and labels.

    A name is "bot", "bot:7", "bot@production", "bases/tiny" or a full resource name.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._namespace = connection, namespace

    async def get(self, name: str) -> Described:
        """What is said of a resource.

        Raises:
            GraftError: *_NOT_FOUND, INVALID_REFERENCE.
        """
        stub, call, full = (
            self._connection.registry,
            self._connection.call,
            full_name(name, self._namespace),
        )
        if "/versions/" in full or "/aliases/" in full:
            version = await call(stub.GetVersion, pb.GetVersionRequest(name=full), _PEER)
            return _described(version)
        if "/bases/" in full:
            base = await call(stub.GetBase, pb.GetBaseRequest(name=full), _PEER)
            return _described(base)
        adapter = await call(stub.GetAdapter, pb.GetAdapterRequest(name=full), _PEER)
        return _described(adapter)

    async def update(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        etag: str = "",
    ) -> Described:
        """Says something else of a resource.

        Args:
            name: of which; an alias means the version that it names now.
            description: the new one; None to leave it.
            labels: all labels that it shall have; None to leave them.
            etag: the etag that it must have now; empty for no condition.

        Raises:
            GraftError: *_NOT_FOUND, ETAG_MISMATCH, DELETED, INVALID_REQUEST.
        """
        given = {"description": description is not None, "labels": labels is not None}
        mask = FieldMask(paths=[path for path, is_given in given.items() if is_given])
        if not mask.paths:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"Nothing is to be changed of {name}",
                next_step="Give a description or labels.",
            )
        full = full_name(name, self._namespace)
        if "/aliases/" in full:
            full = (await self.get(full)).name
        said = {"name": full, "description": description or "", "labels": labels, "etag": etag}
        return await self._send(full, said, mask)

    async def _send(self, full: str, said: Mapping[str, Any], mask: FieldMask) -> Described:
        stub, call = self._connection.registry, self._connection.call
        if "/versions/" in full:
            of_version = pb.UpdateVersionRequest(version=pb.Version(**said), update_mask=mask)
            version = await call(stub.UpdateVersion, of_version, _PEER)
            return _described(version)
        if "/bases/" in full:
            of_base = pb.UpdateBaseRequest(base=pb.Base(**said), update_mask=mask)
            base = await call(stub.UpdateBase, of_base, _PEER)
            return _described(base)
        of_adapter = pb.UpdateAdapterRequest(adapter=pb.Adapter(**said), update_mask=mask)
        adapter = await call(stub.UpdateAdapter, of_adapter, _PEER)
        return _described(adapter)

    async def label(self, name: str, changes: Mapping[str, str | None]) -> Described:
        """Sets and removes single labels, and leaves those that others set meanwhile.

        Args:
            name: of which resource.
            changes: the new value of each label; None removes it.

        Raises:
            GraftError: *_NOT_FOUND, DELETED, INVALID_REQUEST; ETAG_MISMATCH when others change it
                all the time.
        """
        for tries_left in reversed(range(_TRIES)):
            found = await self.get(name)
            wanted = {**found.labels, **changes}
            labels = {key: value for key, value in wanted.items() if value is not None}
            try:
                return await self.update(found.name, labels=labels, etag=found.etag)
            except GraftError as error:
                if error.reason is not Reason.ETAG_MISMATCH or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")


def _described(message: _Message) -> Described:
    return Described(message.name, message.description, dict(message.labels), message.etag)
