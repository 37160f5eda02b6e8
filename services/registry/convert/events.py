"""Which changes a watch asks for."""

from __future__ import annotations

from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.catalogue.base import EventFilter
from services.registry.convert.checks import NAMESPACE, check_parent
from services.registry.errors import invalid

_KINDS = ("adapter", "base", "version", "alias", "policy")


def event_filter(request: pb.WatchRequest) -> EventFilter:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    for kind in request.kinds:
        if kind not in _KINDS:
            raise invalid(
                f"{kind[:80]!r} is no kind of resource",
                f"Use some of {', '.join(_KINDS)}, or none.",
            )
    kinds = frozenset(request.kinds)
    if request.parent == "namespaces/-":
        return EventFilter(kinds=kinds)
    if request.parent.count("/") == 1:
        return EventFilter(parse_name(request.parent, NAMESPACE)["namespace"], kinds=kinds)
    return EventFilter(parent=check_parent(request.parent), kinds=kinds)
