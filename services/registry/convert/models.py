"""Requests to create adapters and bases, as domain values."""

from __future__ import annotations

import json

from graft.digests import is_digest
from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry import domain
from services.registry.catalogue.base import NewAdapter, NewBase
from services.registry.convert.checks import ADAPTER, BASE, check_labels, check_text
from services.registry.errors import invalid


def new_adapter(request: pb.CreateAdapterRequest) -> NewAdapter:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    adapter = request.adapter
    parse_name(adapter.name, ADAPTER)
    parse_name(adapter.base, BASE)
    check_text("description", adapter.description)
    check_labels(adapter.name, adapter.labels)
    return NewAdapter(adapter.name, adapter.base, adapter.description, dict(adapter.labels))


def new_base(request: pb.CreateBaseRequest) -> NewBase:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    base = request.base
    parse_name(base.name, BASE)
    _check_fingerprint(base)
    _check_config(base)
    check_text("source", base.source)
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
        description=check_text("description", base.description),
        labels=check_labels(base.name, base.labels),
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
        check_text(f"The path of a module of {base.name}", module.path)
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
