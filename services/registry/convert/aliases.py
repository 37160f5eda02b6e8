"""Requests about aliases, as domain values."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.catalogue.base import AliasMove
from services.registry.convert.checks import check_alias, check_text, version_number
from services.registry.errors import invalid


def alias_move(request: pb.SetAliasRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    check_alias(request.name)
    check_text("reason", request.reason)
    expected: int | None = None
    if request.HasField("expected_version"):
        expected = _number_for(request.name, request.expected_version)
    if not request.version:
        raise invalid(f"No version is given for {request.name}", "Write .../versions/7.")
    return AliasMove(
        name=request.name,
        version=_number_for(request.name, request.version),
        expected_version=expected,
        etag=request.etag or None,
        actor=actor,
        reason=request.reason,
    )


def alias_rollback(request: pb.RollbackAliasRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    check_alias(request.name)
    check_text("reason", request.reason)
    return AliasMove(request.name, None, None, request.etag or None, actor, request.reason)


def _number_for(alias: str, version: str) -> int:
    if not version:
        return 0
    parent, number = version_number(version)
    if parent != alias.rsplit("/", 2)[0]:
        raise invalid(
            f"{alias} cannot name {version}: it is of another adapter or base",
            "An alias names versions of its own adapter or base.",
        )
    return number
