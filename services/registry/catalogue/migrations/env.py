"""Alembic's entry: runs the migrations on the connection that migrate.py hands over."""

from __future__ import annotations

from alembic import context


def _run() -> None:
    context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_run()
