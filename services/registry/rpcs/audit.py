"""The RPC that reads the audit log."""

from __future__ import annotations

from graft.names import parse_name
from graft.registry.v1 import operations_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert.audit import entry_message
from services.registry.convert.checks import NAMESPACE, check_text
from services.registry.errors import invalid
from services.registry.pages import page_limit
from services.registry.rpcs.operations import OperationsGroup


class AuditRpcs(OperationsGroup):
    """What was done, by whom."""

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        namespace = None
        if request.parent != "namespaces/-":
            namespace = parse_name(request.parent, NAMESPACE)["namespace"]
        if request.after_number < 0:
            raise invalid(
                f"after_number is {request.after_number}", "Use 0 for all there ever were."
            )
        resource = check_text("resource", request.resource).rstrip("/")
        terms = (resource, str(request.after_number))
        token = self.parts.tokens.read(
            "ListAuditEntries", request.parent, request.page_token, *terms
        )
        page = await self.parts.audit.list(
            request.after_number if token is None else int(token),
            page_limit(request.page_size),
            namespace,
            resource,
        )
        return pb.ListAuditEntriesResponse(
            entries=map(entry_message, page.items),
            next_page_token=self.parts.tokens.make(
                "ListAuditEntries", request.parent, page.next_key, *terms
            ),
        )
