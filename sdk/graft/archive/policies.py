"""Policies of aliases, as archives see them."""

from __future__ import annotations

from graft.connection import Connection
from graft.errors import GraftError, NotFoundError
from graft.registry.v1 import registry_service_pb2 as pb


async def read_policy(connection: Connection, alias: str) -> pb.AliasPolicy:
    """The policy of an alias; an empty one where none was ever set."""
    request = pb.GetAliasPolicyRequest(name=alias)
    try:
        return await connection.call(connection.registry.GetAliasPolicy, request, "the registry")
    except NotFoundError:
        return pb.AliasPolicy()
    except GraftError as error:
        # A registry from before there were policies.
        if "UNIMPLEMENTED" in error.message:
            return pb.AliasPolicy()
        raise


def rules_of(policy: pb.AliasPolicy) -> pb.AliasPolicy:
    """What it asks for, without when and by whom it was set."""
    return pb.AliasPolicy(
        protected=policy.protected, movers=policy.movers, conditions=policy.conditions
    )
