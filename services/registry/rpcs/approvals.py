"""RPCs about policies of aliases and approvals of versions."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.aliases import approval_alias, new_policy
from services.registry.convert.checks import check_alias, check_text, version_number
from services.registry.rpcs.base import RpcGroup


class ApprovalRpcs(RpcGroup):
    """What must hold before an alias moves, and who agrees."""

    async def GetAliasPolicy(
        self, request: pb.GetAliasPolicyRequest, context: Context
    ) -> pb.AliasPolicy:
        found = await self.parts.policies.get(check_alias(request.name))
        # An alias without a policy has one that asks for nothing.
        return (
            pb.AliasPolicy(name=request.name) if found is None else messages.policy_message(found)
        )

    async def SetAliasPolicy(
        self, request: pb.SetAliasPolicyRequest, context: Context
    ) -> pb.AliasPolicy:
        return messages.policy_message(await self.parts.policies.set(new_policy(request)))

    async def ApproveVersion(
        self, request: pb.ApproveVersionRequest, context: Context
    ) -> pb.Approval:
        approval = await self.parts.approvals.approve(
            *version_number(request.name),
            approval_alias(request.alias),
            check_text("reason", request.reason),
        )
        return messages.approval_message(approval)

    async def RevokeApproval(
        self, request: pb.RevokeApprovalRequest, context: Context
    ) -> pb.Approval:
        approval = await self.parts.approvals.revoke(
            *version_number(request.name), approval_alias(request.alias)
        )
        return messages.approval_message(approval)

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: Context
    ) -> pb.ListApprovalsResponse:
        found = await self.parts.approvals.list(*version_number(request.name))
        return pb.ListApprovalsResponse(approvals=map(messages.approval_message, found))
