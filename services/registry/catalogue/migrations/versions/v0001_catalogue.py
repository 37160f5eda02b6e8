"""The first schema. It never changes: a later one is a migration of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes all tables, and the counter of revisions at 0."""
    revisions = op.create_table(
        "revisions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revisions, [{"id": 1, "value": 0}])
    _create_bases()
    _create_adapters()
    _create_versions()
    _create_aliases()
    _create_events()


def downgrade() -> None:
    """Drops everything."""
    for name in (
        "request_keys", "events", "alias_moves", "aliases", "versions", "adapters", "bases",
        "revisions",
    ):  # fmt: skip
        op.drop_table(name)


def _create_bases() -> None:
    op.create_table(
        "bases",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("config_json", sa.Text, nullable=False),
        sa.Column("modules", sa.Text, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
    )
    op.create_index("bases_by_namespace", "bases", ["namespace", "name"])


def _create_adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("base", sa.String(255), sa.ForeignKey("bases.name"), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("latest_version", sa.BigInteger, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
    )
    op.create_index("adapters_by_namespace", "adapters", ["namespace", "name"])


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("adapter", sa.String(255), sa.ForeignKey("adapters.name"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("adapter", "digest", name="versions_by_digest"),
    )


def _alias_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("adapter", sa.String(255), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("version_digest", sa.String(71), nullable=False),
        sa.Column("previous_version", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("update_time_us", sa.BigInteger, nullable=False),
    ]


def _create_aliases() -> None:
    version = (["adapter", "version"], ["versions.adapter", "versions.number"])
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(255), primary_key=True),
        *_alias_columns(),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(*version),
    )
    op.create_index("aliases_by_namespace", "aliases", ["namespace", "name"])
    op.create_index("aliases_by_adapter", "aliases", ["adapter", "name"])
    op.create_table(
        "alias_moves",
        sa.Column("name", sa.String(255), primary_key=True),
        *_alias_columns(),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.ForeignKeyConstraint(*version),
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
    )
    op.create_index("events_by_namespace", "events", ["namespace", "revision"])
    op.create_table(
        "request_keys",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(255), primary_key=True),
        sa.Column("request_hash", sa.String(71), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
    )
