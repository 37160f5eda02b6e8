"""What must hold before an alias moves, and who agrees: policies of aliases and approvals of versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from graft.conditions import describe_condition, parse_condition
from graft.connection import Connection
from graft.convert import optional_time
from graft.names import DEFAULT_ALIAS, adapter_name, alias_name, version_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy; conditions as parse_condition() takes them. etag is empty where none was set."""

    name: str
    protected: bool
    movers: Sequence[str]
    conditions: Sequence[str]
    etag: str
    actor: str
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody's agreement; alias is "" for every alias."""

    version: str
    alias: str
    actor: str
    reason: str
    create_time: datetime | None


class Promotion:
    """Policies and approvals of a namespace. A name is short ("bot") or a full resource name."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._namespace = connection, namespace

    def _full(self, adapter: str) -> str:
        return adapter if "/" in adapter else adapter_name(self._namespace, adapter)

    async def policy(self, adapter: str, *, alias: str = DEFAULT_ALIAS) -> Policy:
        """What must hold before an alias moves; nothing where no policy was set."""
        request = pb.GetAliasPolicyRequest(name=alias_name(self._full(adapter), alias))
        stub = self._connection.registry
        return _policy(await self._connection.call(stub.GetAliasPolicy, request, _PEER))

    async def set_policy(
        self,
        adapter: str,
        *,
        alias: str = DEFAULT_ALIAS,
        protected: bool = False,
        movers: Sequence[str] = (),
        conditions: Sequence[str] = (),
        etag: str = "",
        reason: str = "",
    ) -> Policy:
        """Sets what must hold before an alias moves.

        Args:
            adapter: the adapter.
            alias: the alias, which may not be there yet.
            protected: only movers move it, with a reason and an expectation, and nobody deletes it.
            movers: who may.
            conditions: see graft.conditions.parse_condition.
            etag: of the policy as it was read; empty for no condition.
            reason: why, for the audit log.

        Raises:
            GraftError: PROTECTED, ETAG_MISMATCH, INVALID_REQUEST.
        """
        policy = pb.AliasPolicy(
            name=alias_name(self._full(adapter), alias),
            protected=protected,
            movers=movers,
            conditions=[parse_condition(one) for one in conditions],
            etag=etag,
        )
        request = pb.SetAliasPolicyRequest(policy=policy, reason=reason)
        stub = self._connection.registry
        return _policy(await self._connection.call(stub.SetAliasPolicy, request, _PEER))

    async def approve(
        self, adapter: str, version: int, *, alias: str = "", reason: str = ""
    ) -> Approval:
        """Agrees with a version's promotion, as this client's actor."""
        request = pb.ApproveVersionRequest(
            name=version_name(self._full(adapter), version), alias=alias, reason=reason
        )
        stub = self._connection.registry
        return _approval(await self._connection.call(stub.ApproveVersion, request, _PEER))

    async def revoke(self, adapter: str, version: int, *, alias: str = "") -> Approval:
        """Takes this actor's approval back. Raises APPROVAL_NOT_FOUND."""
        request = pb.RevokeApprovalRequest(
            name=version_name(self._full(adapter), version), alias=alias
        )
        stub = self._connection.registry
        return _approval(await self._connection.call(stub.RevokeApproval, request, _PEER))

    async def approvals(self, adapter: str, version: int) -> Sequence[Approval]:
        """A version's approvals, oldest first."""
        request = pb.ListApprovalsRequest(name=version_name(self._full(adapter), version))
        stub = self._connection.registry
        answer = await self._connection.call(stub.ListApprovals, request, _PEER)
        return [_approval(one) for one in answer.approvals]


def _policy(message: pb.AliasPolicy) -> Policy:
    return Policy(
        name=message.name,
        protected=message.protected,
        movers=list(message.movers),
        conditions=[describe_condition(one) for one in message.conditions],
        etag=message.etag,
        actor=message.actor,
        update_time=optional_time(message.update_time),
    )


def _approval(message: pb.Approval) -> Approval:
    return Approval(
        version=message.version,
        alias=message.alias,
        actor=message.actor,
        reason=message.reason,
        create_time=optional_time(message.create_time),
    )
