"""Indexes that lead to each page of a listing, and from a base's version to what was trained on it."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = {
    "versions_of_parent_by_time": ["parent", "create_time_us", "number"],
    "versions_of_parent_by_rank": ["parent", "rank", "number"],
    "versions_of_parent_by_size": ["parent", "size_bytes", "number"],
    "versions_by_rank": ["namespace", "kind", "rank", "parent", "number"],
    "versions_by_size": ["namespace", "kind", "size_bytes", "parent", "number"],
    "versions_by_base_fingerprint": ["base_fingerprint", "parent", "number"],
}


def upgrade() -> None:
    """Makes the indexes."""
    for name, columns in _INDEXES.items():
        op.create_index(name, "versions", columns)


def downgrade() -> None:
    """Removes them."""
    for name in _INDEXES:
        op.drop_index(name, "versions")
