"""Request ids of requests, with what tells another request under the same id apart (AIP-155)."""

from __future__ import annotations

import hashlib

from graft.digests import canonical_json
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.catalogue.base import RequestKey
from services.registry.convert.checks import check_text
from services.registry.errors import invalid

_MAX_REQUEST_ID = 200


def request_key(
    request: pb.CreateAdapterRequest
    | pb.CommitVersionRequest
    | pb.SetAliasRequest
    | pb.RollbackAliasRequest,
) -> RequestKey | None:
    """The idempotency key of a request; None where it has no request_id."""
    if not request.request_id:
        return None
    if len(request.request_id) > _MAX_REQUEST_ID:
        raise invalid(
            f"request_id has {len(request.request_id)} characters",
            f"Use at most {_MAX_REQUEST_ID}, for example a UUID.",
        )
    check_text("request_id", request.request_id)
    body = type(request)()
    body.CopyFrom(request)  # type: ignore[arg-type]
    body.ClearField("request_id")
    hasher = hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\n" + canonical_json(body))
    return RequestKey(request.request_id, "sha256:" + hasher.hexdigest())
