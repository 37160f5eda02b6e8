"""Lineages between the contract's messages and the domain."""

from __future__ import annotations

from collections.abc import Mapping

from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.catalogue.lineage import Direction, Lineage
from services.registry.convert.checks import check_parent, check_text, version_number
from services.registry.errors import invalid

_DIRECTIONS: Mapping[int, Direction] = {
    pb.LINEAGE_DIRECTION_UNSPECIFIED: Direction.BOTH,
    pb.LINEAGE_DIRECTION_SOURCES: Direction.SOURCES,
    pb.LINEAGE_DIRECTION_RESULTS: Direction.RESULTS,
}
_DEFAULT_DEPTH, _MOST_DEPTH = 10, 50
_MAX_NAME = 512


def lineage_request(request: pb.GetLineageRequest) -> tuple[str, Direction, int]:
    """Of what, which way and how far. Raises INVALID_NAME, INVALID_REQUEST."""
    if request.depth < 0:
        raise invalid(f"depth is {request.depth}", "Use 1 to 50, or 0 for 10.")
    direction = _DIRECTIONS.get(request.direction)
    if direction is None:
        raise invalid(
            f"direction is {request.direction}",
            "Use LINEAGE_DIRECTION_SOURCES or _RESULTS, or none.",
        )
    return _name(request.name), direction, min(request.depth or _DEFAULT_DEPTH, _MOST_DEPTH)


def _name(name: str) -> str:
    if not name or len(check_text("name", name)) > _MAX_NAME:
        raise invalid("name is empty or too long", "Name a version, adapter, base, job or data.")
    if not name.startswith("namespaces/"):
        if "://" not in name:
            raise invalid(f"{name[:80]!r} is no name", "Write namespaces/{namespace}/... in full.")
        return name
    if "/versions/" in name:
        parent, number = version_number(name)
        return f"{parent}/versions/{number}"
    parts = name.split("/", 3)
    if len(parts) == 4 and parts[2] == "data" and parts[3]:
        parse_name("/".join(parts[:2]), "namespaces/{namespace}")
        return name
    if "/jobs/" in name:
        parse_name(name, "namespaces/{namespace}/jobs/{job}")
        return name
    return check_parent(name)


def lineage_message(lineage: Lineage) -> pb.GetLineageResponse:
    """A lineage as the contract has it."""
    return pb.GetLineageResponse(
        nodes=[
            pb.LineageNode(name=one.name, kind=one.kind, facts=one.facts, deleted=one.deleted)
            for one in lineage.nodes
        ],
        edges=[
            pb.LineageEdge(result=one.result, source=one.source, relation=one.relation)
            for one in lineage.edges
        ],
        truncated=lineage.truncated,
    )
