"""How an alias' canaries are rolled out, and why they were taken back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = ("aliases", "alias_moves")
_COLUMNS = ("rollout", "rollout_report")


def upgrade() -> None:
    """Adds the columns; on PostgreSQL without writing a row."""
    for table in _TABLES:
        for name in _COLUMNS:
            op.add_column(
                table, sa.Column(name, sa.Text, nullable=False, server_default=sa.text("'null'"))
            )


def downgrade() -> None:
    """Removes them."""
    for table in _TABLES:
        for name in _COLUMNS:
            op.drop_column(table, name)
