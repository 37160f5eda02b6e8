"""Requests to commit versions, as domain values."""

from __future__ import annotations

import re
from collections.abc import Iterable

from graft.common.v1 import common_pb2
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry import domain
from services.registry.commit import CommitRequest
from services.registry.convert.checks import check_labels, check_parent, check_text, version_number
from services.registry.convert.keys import request_key
from services.registry.errors import invalid

_METHOD = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}")
_MAX_SOURCES = 64
_MAX_SOURCE = 500
_MAX_METRIC = 255


def commit_request(request: pb.CommitVersionRequest) -> CommitRequest:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    is_base = "/bases/" in check_parent(request.parent)
    method = request.method or ("full" if is_base else "")
    if method and _METHOD.fullmatch(method) is None:
        raise invalid(f"method is {method[:80]!r}", 'Write it like "lora", "qlora" or "merge".')
    return CommitRequest(
        parent=request.parent,
        files=files(request.files),
        base_fingerprint=request.base_fingerprint,
        lineage=lineage(request.lineage),
        key=request_key(request),
        description=check_text("description", request.description),
        labels=check_labels(request.parent, request.labels),
        method=method,
    )


def files(messages: Iterable[common_pb2.File]) -> list[domain.File]:
    """Files as the request has them."""
    return [domain.File(one.path, one.digest, one.size_bytes) for one in messages]


def lineage(message: pb.Lineage) -> domain.Lineage:
    """Where a version came from. Raises INVALID_REQUEST, INVALID_NAME."""
    for name in message.parent_versions:
        version_number(name)
    for field in ("job", "data_digest"):
        _check_source(field, getattr(message, field))
    for source in message.sources:
        _check_source("sources", source)
    if max(len(message.sources), len(message.parent_versions)) > _MAX_SOURCES:
        raise invalid("There are too many sources", f"Name at most {_MAX_SOURCES}.")
    for metric in message.metrics:
        if not 0 < len(check_text("a metric's name", metric)) <= _MAX_METRIC:
            raise invalid(
                f"{metric[:80]!r} cannot be a metric's name", f"Use 1 to {_MAX_METRIC} characters."
            )
    if "\0" in message.spec_json or any("\0" in a + b for a, b in message.library_versions.items()):
        raise invalid("lineage holds a NUL character", "Leave it out: it is no text.")
    return domain.Lineage(
        job=message.job,
        attempt=message.attempt,
        spec_json=message.spec_json,
        data_digest=message.data_digest,
        data_rows=message.data_rows,
        seed=message.seed,
        library_versions=dict(message.library_versions),
        metrics=dict(message.metrics),
        parent_versions=tuple(message.parent_versions),
        sources=tuple(message.sources),
    )


def _check_source(field: str, text: str) -> None:
    if len(check_text(field, text)) > _MAX_SOURCE:
        raise invalid(f"{field} has {len(text)} characters", f"Use at most {_MAX_SOURCE}.")
