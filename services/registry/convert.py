"""The only place where the registry's protobuf messages and domain values meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from graft.common.v1 import common_pb2
from graft.digests import canonical_json, digest_message, is_digest
from graft.names import parse_name, version_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry import domain
from services.registry.catalogue.base import AliasMove, NewAdapter, NewBase, RequestKey
from services.registry.errors import invalid
from services.registry.watch import Bookmark

ADAPTER = "namespaces/{namespace}/adapters/{adapter}"
BASE = "namespaces/{namespace}/bases/{base}"
ALIAS = ADAPTER + "/aliases/{alias}"
VERSION = ADAPTER + "/versions/{version}"
_MAX_REQUEST_ID = 200
_MAX_TEXT = 10_000
_MAX_LABELS = 64
_MAX_LABEL = 256


def timestamp(time: datetime) -> Timestamp:
    """A time as protobuf's."""
    result = Timestamp()
    result.FromDatetime(time)
    return result


# From requests.


def request_key(
    request: pb.CreateAdapterRequest | pb.CommitVersionRequest,
) -> RequestKey | None:
    """The idempotency key of a request; None where it has no request_id."""
    if not request.request_id:
        return None
    if len(request.request_id) > _MAX_REQUEST_ID:
        raise invalid(
            f"request_id has {len(request.request_id)} characters",
            f"Use at most {_MAX_REQUEST_ID}, for example a UUID.",
        )
    body = type(request)()
    body.CopyFrom(request)  # type: ignore[arg-type]
    body.ClearField("request_id")
    hasher = hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\n" + canonical_json(body))
    return RequestKey(request.request_id, "sha256:" + hasher.hexdigest())


def new_adapter(request: pb.CreateAdapterRequest) -> NewAdapter:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    adapter = request.adapter
    parse_name(adapter.name, ADAPTER)
    parse_name(adapter.base, BASE)
    check_text("description", adapter.description)
    if len(adapter.labels) > _MAX_LABELS:
        raise invalid(
            f"{adapter.name} has {len(adapter.labels)} labels", f"Use at most {_MAX_LABELS}."
        )
    for key, value in adapter.labels.items():
        if not key or max(len(key), len(value)) > _MAX_LABEL:
            raise invalid(
                f"The label {key[:80]!r} of {adapter.name} is empty or too long",
                f"Use 1 to {_MAX_LABEL} characters for the key and at most as many for the value.",
            )
    return NewAdapter(adapter.name, adapter.base, adapter.description, dict(adapter.labels))


def new_base(request: pb.CreateBaseRequest) -> NewBase:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    base = request.base
    parse_name(base.name, BASE)
    _check_fingerprint(base)
    _check_config(base)
    return NewBase(
        name=base.name,
        source=base.source,
        fingerprint=domain.Fingerprint(
            base.fingerprint.digest,
            base.fingerprint.config_digest,
            base.fingerprint.tokenizer_digest,
            base.fingerprint.weights_digest,
        ),
        config_json=base.config_json,
        modules=_modules(base),
    )


def _check_fingerprint(base: pb.Base) -> None:
    for field in ("digest", "config_digest", "tokenizer_digest", "weights_digest"):
        found = getattr(base.fingerprint, field)
        if not is_digest(found):
            raise invalid(
                f"fingerprint.{field} of {base.name} is {found[:80]!r}",
                "Fill it with graft.bases.read_base(folder, name).",
            )


def _check_config(base: pb.Base) -> None:
    try:
        config = json.loads(base.config_json)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise invalid(
            f"config_json of {base.name} is not a JSON object",
            "Send the content of the model's config.json.",
        )


def _modules(base: pb.Base) -> list[domain.Module]:
    seen: set[str] = set()
    for module in base.modules:
        if not module.path or module.in_features < 1 or module.out_features < 1:
            raise invalid(
                f"Module {module.path!r} of {base.name} has the shape "
                f"({module.out_features}, {module.in_features})",
                "Every module has a path and both of its features.",
            )
        if module.path in seen:
            raise invalid(f"Module {module.path!r} of {base.name} is there twice", "Send it once.")
        seen.add(module.path)
    if not seen:
        raise invalid(
            f"{base.name} has no modules",
            "Fill modules with graft.bases.read_base(folder, name): adapters are checked by them.",
        )
    return [domain.Module(one.path, one.in_features, one.out_features) for one in base.modules]


def files(messages: Iterable[common_pb2.File]) -> list[domain.File]:
    """Files as the request has them."""
    return [domain.File(one.path, one.digest, one.size_bytes) for one in messages]


def lineage(message: pb.Lineage) -> domain.Lineage:
    """Where a version came from."""
    return domain.Lineage(
        job=message.job,
        attempt=message.attempt,
        spec_json=message.spec_json,
        data_digest=message.data_digest,
        data_rows=message.data_rows,
        seed=message.seed,
        library_versions=dict(message.library_versions),
        metrics=dict(message.metrics),
    )


def version_number(name: str) -> tuple[str, int]:
    """The adapter's name and the number in a version's name.

    Raises:
        GraftError: INVALID_NAME, INVALID_REQUEST.
    """
    text = parse_name(name, VERSION)["version"]
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise invalid(f"{name} does not end in a version's number", "Write .../versions/7.")
    return name.rsplit("/", 2)[0], int(text)


def alias_move(request: pb.SetAliasRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    parse_name(request.name, ALIAS)
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
    parse_name(request.name, ALIAS)
    check_text("reason", request.reason)
    return AliasMove(request.name, None, None, request.etag or None, actor, request.reason)


def _number_for(alias: str, version: str) -> int:
    if not version:
        return 0
    adapter, number = version_number(version)
    if adapter != alias.rsplit("/", 2)[0]:
        raise invalid(
            f"{alias} cannot name {version}: it is of another adapter",
            "An alias names versions of its own adapter.",
        )
    return number


def check_text(field: str, text: str) -> None:
    """Raises INVALID_REQUEST for a text that is too long."""
    if len(text) > _MAX_TEXT:
        raise invalid(f"{field} has {len(text)} characters", f"Use at most {_MAX_TEXT}.")


# To answers.


def adapter_message(adapter: domain.Adapter) -> pb.Adapter:
    """An adapter as the contract has it."""
    return pb.Adapter(
        name=adapter.name,
        base=adapter.base,
        description=adapter.description,
        labels=adapter.labels,
        latest_version=adapter.latest_version,
        create_time=timestamp(adapter.create_time),
    )


def base_message(base: domain.Base) -> pb.Base:
    """A base as the contract has it."""
    return pb.Base(
        name=base.name,
        source=base.source,
        fingerprint=pb.BaseFingerprint(
            digest=base.fingerprint.digest,
            config_digest=base.fingerprint.config_digest,
            tokenizer_digest=base.fingerprint.tokenizer_digest,
            weights_digest=base.fingerprint.weights_digest,
        ),
        config_json=base.config_json,
        modules=[
            pb.BaseModule(path=one.path, in_features=one.in_features, out_features=one.out_features)
            for one in base.modules
        ],
        create_time=timestamp(base.create_time),
    )


def manifest_message(manifest: domain.Manifest) -> pb.Manifest:
    """A manifest as the contract has it; its digest is taken of this."""
    origin = manifest.lineage
    return pb.Manifest(
        base=manifest.base,
        base_fingerprint=manifest.base_fingerprint,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        alpha=manifest.alpha,
        target_modules=manifest.target_modules,
        files=[
            common_pb2.File(path=one.path, digest=one.digest, size_bytes=one.size_bytes)
            for one in manifest.files
        ],
        lineage=pb.Lineage(
            job=origin.job,
            attempt=origin.attempt,
            spec_json=origin.spec_json,
            data_digest=origin.data_digest,
            data_rows=origin.data_rows,
            seed=origin.seed,
            library_versions=origin.library_versions,
            metrics=origin.metrics,
        ),
    )


def manifest_digest(manifest: domain.Manifest) -> str:
    """The digest that names a version's content."""
    return digest_message(manifest_message(manifest))


def version_message(version: domain.Version) -> pb.Version:
    """A version as the contract has it."""
    return pb.Version(
        name=version_name(version.adapter, version.number),
        number=version.number,
        digest=version.digest,
        manifest=manifest_message(version.manifest),
        admission=pb.AdmissionReport(
            checks=[
                pb.AdmissionCheck(name=one.name, detail=one.detail) for one in version.report.checks
            ],
            tensors=version.report.tensors,
            parameters=version.report.parameters,
        ),
        create_time=timestamp(version.create_time),
    )


def alias_message(alias: domain.Alias) -> pb.Alias:
    """An alias as the contract has it."""
    before = alias.previous_version
    return pb.Alias(
        name=alias.name,
        version=version_name(alias.adapter, alias.version),
        version_digest=alias.version_digest,
        previous_version=version_name(alias.adapter, before) if before else "",
        etag=alias.etag,
        actor=alias.actor,
        reason=alias.reason,
        update_time=timestamp(alias.update_time),
        revision=alias.revision,
    )


def watch_message(news: domain.Event | Bookmark) -> pb.WatchResponse:
    """An event or a bookmark as the contract has it."""
    answer = pb.WatchResponse(revision=news.revision, time=timestamp(news.time))
    if isinstance(news, domain.Event):
        match news.resource:
            case domain.Adapter():
                answer.adapter.CopyFrom(adapter_message(news.resource))
            case domain.Base():
                answer.base.CopyFrom(base_message(news.resource))
            case domain.Version():
                answer.version.CopyFrom(version_message(news.resource))
            case domain.Alias():
                answer.alias.CopyFrom(alias_message(news.resource))
    return answer
