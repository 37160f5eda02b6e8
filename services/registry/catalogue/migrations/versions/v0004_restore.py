"""Version numbers that are not given any more, after a restore that lost who had them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = ("adapters", "bases")


def upgrade() -> None:
    """Adds the column; on PostgreSQL without writing a row."""
    for table in _TABLES:
        column = sa.Column("reserved_version", sa.BigInteger, nullable=False, server_default="0")
        op.add_column(table, column)


def downgrade() -> None:
    """Removes it."""
    for table in _TABLES:
        op.drop_column(table, "reserved_version")
