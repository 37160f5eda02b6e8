"""The catalogue's tables as they are now; migrations/ holds how they came to be so.

Only types that SQLite and PostgreSQL share. Times are microseconds since 1970 in UTC; JSON is text.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

# value: last event. compacted: last event that is not kept any more. audit: last audit entry and
# its digest. One row, whose lock orders all changes of all processes.
revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    Column("compacted", BigInteger, nullable=False, server_default=text("0")),
    Column("audit", BigInteger, nullable=False, server_default=text("0")),
    Column("audit_digest", String(71), nullable=False, server_default=text("''")),
)


def _life_columns() -> list[Column[object]]:
    """See domain.Life, and what people say of a resource."""
    return [
        Column("description", Text, nullable=False, server_default=text("''")),
        Column("labels", Text, nullable=False, server_default=text("'{}'")),
        Column("etag", String(64), nullable=False, server_default=text("''")),
        Column("actor", Text, nullable=False, server_default=text("''")),
        Column("create_time_us", BigInteger, nullable=False),
        Column("delete_time_us", BigInteger),
        Column("expire_time_us", BigInteger),
        Column("purge_time_us", BigInteger),
    ]


bases = Table(
    "bases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("source", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("config_json", Text, nullable=False),
    Column("modules", Text, nullable=False),
    Column("latest_version", BigInteger, nullable=False, server_default=text("0")),
    # Numbers up to this one are not given any more: a catalogue that was restored lost them.
    Column("reserved_version", BigInteger, nullable=False, server_default=text("0")),
    *_life_columns(),
    Index("bases_by_namespace", "namespace", "name"),
    Index("bases_by_time", "namespace", "create_time_us", "name"),
)

# What versions of bases are, for checking adapters against them. One row per fingerprint.
base_contents = Table(
    "base_contents",
    metadata,
    Column("fingerprint_digest", String(71), primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("config_json", Text, nullable=False),
    Column("modules", Text, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("base", String(255), ForeignKey("bases.name"), nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    Column("reserved_version", BigInteger, nullable=False, server_default=text("0")),
    *_life_columns(),
    Index("adapters_by_namespace", "namespace", "name"),
    Index("adapters_by_time", "namespace", "create_time_us", "name"),
    Index("adapters_by_base", "base", "name"),
)

# parent is an adapter or a base; base, base_fingerprint, method and rank repeat the manifest, for
# finding. fingerprint is that of a base's version.
versions = Table(
    "versions",
    metadata,
    Column("parent", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("namespace", String(63), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("base", String(255), nullable=False),
    Column("base_fingerprint", String(71), nullable=False),
    Column("fingerprint", String(71), nullable=False),
    Column("method", String(64), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("signatures", Text, nullable=False, server_default=text("'[]'")),
    *_life_columns(),
    UniqueConstraint("parent", "digest", name="versions_by_digest"),
    Index("versions_by_namespace", "namespace", "kind", "parent", "number"),
    Index("versions_by_time", "namespace", "kind", "create_time_us", "parent", "number"),
    Index("versions_by_fingerprint", "fingerprint"),
    Index("versions_by_base_fingerprint", "base_fingerprint", "parent", "number"),
    Index("versions_by_rank", "namespace", "kind", "rank", "parent", "number"),
    Index("versions_by_size", "namespace", "kind", "size_bytes", "parent", "number"),
    Index("versions_of_parent_by_time", "parent", "create_time_us", "number"),
    Index("versions_of_parent_by_rank", "parent", "rank", "number"),
    Index("versions_of_parent_by_size", "parent", "size_bytes", "number"),
)

# The digests of a version's files; removed when it is purged.
version_files = Table(
    "version_files",
    metadata,
    Column("parent", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(71), primary_key=True),
    Index("version_files_by_digest", "digest"),
)

version_metrics = Table(
    "version_metrics",
    metadata,
    Column("parent", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("metric", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("value", Double, nullable=False),
    Index("version_metrics_by_value", "namespace", "metric", "value", "parent", "number"),
    Index("version_metrics_of_parent", "parent", "metric", "value", "number"),
)

# Labels of adapters and bases (number 0) and of versions, as rows, for finding.
resource_labels = Table(
    "resource_labels",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("label", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("value", String(255), nullable=False),
    Index("resource_labels_by_value", "namespace", "label", "value", "name", "number"),
)

# result is a version's name; source the name of what it was made from; see LineageEdge.
lineage_edges = Table(
    "lineage_edges",
    metadata,
    Column("result", String(320), primary_key=True),
    Column("relation", String(16), primary_key=True),
    Column("source", String(512), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Index("lineage_edges_by_source", "source", "result"),
)

approvals = Table(
    "approvals",
    metadata,
    Column("parent", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("alias", String(63), primary_key=True),
    Column("actor", String(255), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
)


def _alias_columns() -> list[Column[object]]:
    return [
        Column("namespace", String(63), nullable=False),
        Column("parent", String(255), nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("version_digest", String(71), nullable=False),
        Column("previous_version", BigInteger, nullable=False),
        Column("etag", String(64), nullable=False),
        Column("actor", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("update_time_us", BigInteger, nullable=False),
        Column("canaries", Text, nullable=False, server_default=text("'[]'")),
        Column("gate_report", Text, nullable=False, server_default=text("'null'")),
        Column("rollout", Text, nullable=False, server_default=text("'null'")),
        Column("rollout_report", Text, nullable=False, server_default=text("'null'")),
    ]


aliases = Table(
    "aliases",
    metadata,
    Column("name", String(255), primary_key=True),
    *_alias_columns(),
    Column("revision", BigInteger, nullable=False),
    ForeignKeyConstraint(["parent", "version"], ["versions.parent", "versions.number"]),
    Index("aliases_by_namespace", "namespace", "name"),
    Index("aliases_by_parent", "parent", "name"),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("name", String(255), primary_key=True),
    *_alias_columns(),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("deleted", Boolean, nullable=False, server_default=text("false")),
    ForeignKeyConstraint(["parent", "version"], ["versions.parent", "versions.number"]),
    Index("alias_moves_by_time", "update_time_us"),
    Index("alias_moves_by_version", "parent", "version"),
)

alias_policies = Table(
    "alias_policies",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("parent", String(255), nullable=False),
    Column("policy", Text, nullable=False),
    Index("alias_policies_by_parent", "parent", "name"),
)

# state is "present" or "deleting". touched_us: when it was last uploaded or asked for.
blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("touched_us", BigInteger, nullable=False),
    Index("blobs_by_state", "state", "touched_us"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("ttl_ms", BigInteger, nullable=False),
    Column("renewals", BigInteger, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("renew_time_us", BigInteger, nullable=False),
)

# target is a version's name or a digest.
lease_targets = Table(
    "lease_targets",
    metadata,
    Column("lease", String(64), ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True),
    Column("target", String(320), primary_key=True),
    Index("lease_targets_by_target", "target"),
)

# Limits are null for none. What is used is kept in the transaction that uses it.
namespaces = Table(
    "namespaces",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("max_bytes", BigInteger),
    Column("max_versions", BigInteger),
    Column("max_adapters", BigInteger),
    Column("used_bytes", BigInteger, nullable=False),
    Column("used_versions", BigInteger, nullable=False),
    Column("used_adapters", BigInteger, nullable=False),
)

# Triggers of migration 0002 refuse to change or remove rows.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("namespace", String(63), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", String(64), nullable=False),
    Column("resource", String(320), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("digest", String(71), nullable=False),
    Index("audit_entries_by_namespace", "namespace", "number"),
)

events = Table(
    "events",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("namespace", String(63), nullable=False),
    Column("parent", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("resource", Text, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Index("events_by_namespace", "namespace", "revision"),
    Index("events_by_parent", "parent", "revision"),
    Index("events_by_time", "time_us"),
)

request_keys = Table(
    "request_keys",
    metadata,
    Column("namespace", String(63), primary_key=True),
    Column("request_id", String(255), primary_key=True),
    Column("request_hash", String(71), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("resource", Text, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Index("request_keys_by_time", "time_us"),
)

# Keys that all processes of one catalogue share, as hexadecimal text.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
