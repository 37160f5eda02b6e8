"""How adapters and versions look in tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from graft.adapters import describe
from graft.cli.metadata import labels_text
from graft.cli.output import ago, short_digest, size
from graft.results import Adapter, Alias, Version, short_id


def aliases_by_adapter(aliases: Sequence[Alias]) -> dict[str, list[str]]:
    """Aliases as "production:3", by the name of their adapter."""
    found = defaultdict[str, list[str]](list)
    for alias in aliases:
        adapter = alias.name.rpartition("/aliases/")[0]
        found[adapter].append(f"{short_id(alias.name)}:{short_id(alias.version)}")
    return found


def adapter_row(adapter: Adapter, aliases: list[str]) -> tuple[object, ...]:
    """A line of `graft adapters list`."""
    return (
        short_id(adapter.name) + _ended(adapter),
        short_id(adapter.base),
        adapter.latest_version,
        ", ".join(aliases),
        labels_text(adapter.labels),
        ago(adapter.create_time),
    )


def sorted_metric(order: str) -> str:
    """The metric that a table of versions shows: what it is sorted by, else the training's loss."""
    field = order.split()[0] if order.split() else ""
    return field.removeprefix("metrics.") if field.startswith("metrics.") else "train_loss"


def version_row(
    version: Version, aliases: list[str], metric: str = "train_loss", whole: bool = False
) -> tuple[object, ...]:
    """A line of `graft adapters versions`; whole: with the adapter's name."""
    value = version.lineage.metrics.get(metric)
    return (
        (describe(version) if whole else str(version.number)) + _ended(version),
        ", ".join(aliases),
        labels_text(version.labels),
        short_digest(version.digest),
        version.kind,
        version.rank or "",
        size(version.size_bytes),
        short_id(version.lineage.job) if version.lineage.job else "pushed",
        f"{value:.4f}" if value is not None else "",
        ago(version.create_time),
    )


def _ended(found: Adapter | Version) -> str:
    return " (deleted)" if found.deleted else ""


def version_fields(version: Version) -> list[tuple[str, object]]:
    """What `graft adapters show` prints."""
    return [
        *_identity_fields(version),
        ("base", version.base),
        ("fingerprint", version.base_fingerprint),
        ("method", version.kind_in_words),
        ("modules", ", ".join(version.target_modules)),
        *_origin_fields(version),
    ]


def base_version_fields(version: Version) -> list[tuple[str, object]]:
    """What `graft bases show` prints."""
    return [
        *_identity_fields(version),
        ("fingerprint", version.fingerprint),
        ("method", version.method),
        ("quantization", version.quantization),
        *_origin_fields(version),
    ]


def _identity_fields(version: Version) -> list[tuple[str, object]]:
    return [
        ("version", version.name + _ended(version)),
        ("description", version.description),
        ("labels", labels_text(version.labels)),
        ("digest", version.digest),
    ]


def _origin_fields(version: Version) -> list[tuple[str, object]]:
    lineage = version.lineage
    return [
        ("parameters", f"{version.parameters:,}"),
        ("files", "\n".join(f"{one.path}  {size(one.size_bytes)}" for one in version.files)),
        ("checks", "\n".join(f"{one.name}: {one.detail}" for one in version.checks)),
        ("made of", "\n".join(lineage.parent_versions)),
        ("job", lineage.job or "pushed by hand"),
        ("data", f"{lineage.data_rows} rows, {lineage.data_digest}" if lineage.data_rows else None),
        ("metrics", "\n".join(f"{name} {value:g}" for name, value in lineage.metrics.items())),
        ("libraries", ", ".join(f"{k} {v}" for k, v in lineage.library_versions.items())),
        ("created", ago(version.create_time)),
    ]
