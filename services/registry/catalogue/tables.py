"""The catalogue's tables as they are now; migrations/ holds how they came to be so.

Only types that SQLite and PostgreSQL share. Times are microseconds since 1970 in UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

bases = Table(
    "bases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("source", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("config_json", Text, nullable=False),
    Column("modules", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Index("bases_by_namespace", "namespace", "name"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("base", String(255), ForeignKey("bases.name"), nullable=False),
    Column("description", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Index("adapters_by_namespace", "namespace", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("adapter", String(255), ForeignKey("adapters.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    UniqueConstraint("adapter", "digest", name="versions_by_digest"),
)


def _alias_columns() -> list[Column[object]]:
    return [
        Column("namespace", String(63), nullable=False),
        Column("adapter", String(255), nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("version_digest", String(71), nullable=False),
        Column("previous_version", BigInteger, nullable=False),
        Column("etag", String(64), nullable=False),
        Column("actor", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("update_time_us", BigInteger, nullable=False),
    ]


aliases = Table(
    "aliases",
    metadata,
    Column("name", String(255), primary_key=True),
    *_alias_columns(),
    Column("revision", BigInteger, nullable=False),
    ForeignKeyConstraint(["adapter", "version"], ["versions.adapter", "versions.number"]),
    Index("aliases_by_namespace", "namespace", "name"),
    Index("aliases_by_adapter", "adapter", "name"),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("name", String(255), primary_key=True),
    *_alias_columns(),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(["adapter", "version"], ["versions.adapter", "versions.number"]),
)

events = Table(
    "events",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("namespace", String(63), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("resource", Text, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Index("events_by_namespace", "namespace", "revision"),
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
)
