"""The tables of the trainer's database. What is searched for has a column; the rest is in the record."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, String, Table, Text

SCHEMA_VERSION = 1

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    # Without AUTOINCREMENT SQLite would give the number of a deleted last row again.
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String, nullable=False, unique=True),
    Column("namespace", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("record", Text, nullable=False),
    Index("jobs_by_namespace", "namespace", "number"),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", String, ForeignKey("jobs.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("record", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job", String, ForeignKey("jobs.name"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("time", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("record", Text, nullable=False),
    sqlite_with_rowid=False,
)

requests = Table(
    "requests",
    metadata,
    Column("namespace", String, primary_key=True),
    Column("request_id", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("job", String, ForeignKey("jobs.name"), nullable=False),
)
