"""Leases, namespaces and collections between the contract's messages and the domain."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from graft.digests import is_digest
from graft.names import parse_name
from graft.registry.v1 import operations_service_pb2 as pb

from services.registry.catalogue.leases import Lease, NewLease
from services.registry.catalogue.usage import Namespace, Quota
from services.registry.collection.collector import Report
from services.registry.convert.checks import NAMESPACE, check_text, version_number
from services.registry.convert.messages import timestamp
from services.registry.errors import invalid

_LEASE = re.compile(r"leases/([0-9a-f]{32})")
_DEFAULT_TTL_S, _LONGEST_TTL_S = 60.0, 86_400.0
_MAX_TARGETS = 1000
_MAX_WORD = 200
_LIMITS = ("max_bytes", "max_versions", "max_adapters")


def new_lease(request: pb.AcquireLeaseRequest) -> NewLease:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    for field in ("holder", "purpose", "request_id"):
        if len(check_text(field, getattr(request, field))) > _MAX_WORD:
            raise invalid(f"{field} is too long", f"Use at most {_MAX_WORD} characters.")
    if not request.holder:
        raise invalid("holder is empty", 'Say who needs it, for example "inference/host-7".')
    ttl_s = request.ttl_s or _DEFAULT_TTL_S
    if math.isnan(ttl_s) or not 1 <= ttl_s <= _LONGEST_TTL_S:
        raise invalid(f"ttl_s is {ttl_s}", "Use 1 to 86400 seconds, or 0 for 60.")
    held = targets(request.targets)
    if not held:
        raise invalid(
            "targets is empty", "Name versions or digests; an idle holder needs no lease."
        )
    return NewLease(request.holder, request.purpose, held, ttl_s, request.request_id)


def targets(names: Iterable[str]) -> tuple[str, ...]:
    """Names of versions and digests, each once. Raises INVALID_NAME, INVALID_REQUEST."""
    found = tuple(dict.fromkeys(map(target, names)))
    if len(found) > _MAX_TARGETS:
        raise invalid(f"{len(found)} targets were sent", f"Send at most {_MAX_TARGETS}.")
    return found


def target(name: str) -> str:
    """A version's name or a digest. Raises INVALID_NAME, INVALID_REQUEST."""
    if name.startswith("namespaces/"):
        parent, number = version_number(name)
        return f"{parent}/versions/{number}"
    if not is_digest(name):
        raise invalid(
            f"{name[:80]!r} is neither a version nor a digest",
            "Write .../versions/7, or sha256: and 64 lower-case hexadecimal digits.",
        )
    return name


def lease_id(name: str) -> str:
    """The id in a lease's name. Raises INVALID_REQUEST."""
    found = _LEASE.fullmatch(name)
    if found is None:
        raise invalid(f"{name[:80]!r} is no lease", "Write leases/ and what AcquireLease answered.")
    return found[1]


def lease_message(lease: Lease) -> pb.Lease:
    """A lease as the contract has it."""
    return pb.Lease(
        name=f"leases/{lease.id}",
        holder=lease.holder,
        purpose=lease.purpose,
        targets=lease.targets,
        ttl_s=lease.ttl_s,
        create_time=timestamp(lease.create_time),
        expire_time=timestamp(lease.expire_time),
    )


def collection_message(report: Report) -> pb.CollectGarbageResponse:
    """What a collection did as the contract has it."""
    return pb.CollectGarbageResponse(
        removed_blobs=report.removed_blobs,
        removed_bytes=report.removed_bytes,
        kept_by_versions=report.kept.by_versions,
        kept_by_leases=report.kept.by_leases,
        kept_by_age=report.kept.by_age,
        purged_versions=report.purged_versions,
        removed_digests=report.digests,
        removed_uploads=report.removed_uploads,
    )


def namespace_id(name: str) -> str:
    """The id in a namespace's name. Raises INVALID_NAME."""
    return parse_name(name, NAMESPACE)["namespace"]


def quota(request: pb.SetQuotaRequest) -> Quota:
    """Raises INVALID_REQUEST for a negative limit."""
    limits: dict[str, int] = {}
    for field in _LIMITS:
        if request.quota.HasField(field):  # type: ignore[arg-type]
            limits[field] = getattr(request.quota, field)
            if limits[field] < 0:
                raise invalid(
                    f"{field} is {limits[field]}", "Use 0 or more; leave it out for no limit."
                )
    return Quota(**limits)


def namespace_message(namespace: Namespace) -> pb.Namespace:
    """A namespace as the contract has it."""
    allowed = namespace.quota
    return pb.Namespace(
        name=f"namespaces/{namespace.id}",
        quota=pb.Quota(
            max_bytes=allowed.max_bytes,
            max_versions=allowed.max_versions,
            max_adapters=allowed.max_adapters,
        ),
        usage=pb.Usage(
            bytes=namespace.used_bytes,
            versions=namespace.used_versions,
            adapters=namespace.used_adapters,
        ),
    )
