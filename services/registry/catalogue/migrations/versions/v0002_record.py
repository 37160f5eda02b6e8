"""Versions of bases, lives, policies, leases, quotas, audit and what finding needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import sqlalchemy as sa
from alembic import op

from services.registry.catalogue.migrations import schema_0002 as new

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BATCH = 500


def upgrade() -> None:
    """Changes the tables and fills what is new from what is there."""
    _extend_revisions()
    _extend("bases", latest_version=True)
    _extend("adapters", latest_version=False)
    _extend_events()
    _rename_old()
    new.metadata.create_all(op.get_bind())
    _copy_versions()
    _copy_aliases("aliases", new.aliases)
    _copy_aliases("alias_moves", new.alias_moves)
    for name in ("alias_moves", "aliases", "versions"):
        op.drop_table(f"old_{name}")
    _rewrite_json("events", ("revision",))
    _rewrite_json("request_keys", ("namespace", "request_id"))
    _fill_events()
    _fill_labels()
    _fill_namespaces()
    _refuse_changes_of_audit()


def downgrade() -> None:
    """Versions of bases and the audit log have no place in the schema before."""
    raise RuntimeError("Restore the backup of the database that was made before the upgrade.")


def _extend_revisions() -> None:
    op.add_column(
        "revisions", sa.Column("compacted", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column(
        "revisions", sa.Column("audit", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column(
        "revisions", sa.Column("audit_digest", sa.String(71), nullable=False, server_default="")
    )


def _extend(table: str, latest_version: bool) -> None:
    added: list[sa.Column[Any]] = [
        sa.Column("etag", sa.String(64), nullable=False, server_default=""),
        sa.Column("actor", sa.Text, nullable=False, server_default=""),
        sa.Column("delete_time_us", sa.BigInteger),
        sa.Column("expire_time_us", sa.BigInteger),
        sa.Column("purge_time_us", sa.BigInteger),
    ]
    if latest_version:
        added += [
            sa.Column("latest_version", sa.BigInteger, nullable=False, server_default="0"),
            sa.Column("description", sa.Text, nullable=False, server_default=""),
            sa.Column("labels", sa.Text, nullable=False, server_default="{}"),
        ]
    for column in added:
        op.add_column(table, column)
    op.create_index(f"{table}_by_time", table, ["namespace", "create_time_us", "name"])
    if table == "adapters":
        op.create_index("adapters_by_base", table, ["base", "name"])


def _extend_events() -> None:
    op.add_column("events", sa.Column("parent", sa.String(255), nullable=False, server_default=""))
    op.add_column(
        "events", sa.Column("action", sa.String(16), nullable=False, server_default="created")
    )
    op.create_index("events_by_parent", "events", ["parent", "revision"])
    op.create_index("events_by_time", "events", ["time_us"])
    op.create_index("request_keys_by_time", "request_keys", ["time_us"])


def _rename_old() -> None:
    op.drop_index("aliases_by_namespace", "aliases")
    op.drop_index("aliases_by_adapter", "aliases")
    for name in ("versions", "aliases", "alias_moves"):
        op.rename_table(name, f"old_{name}")
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"ALTER INDEX {name}_pkey RENAME TO old_{name}_pkey")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX versions_by_digest RENAME TO old_versions_by_digest")


def _rows(query: str) -> Iterator[sa.RowMapping]:
    """Rows of a query in batches: a catalogue may be larger than memory."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        # Of this statement: the connection's options would hold for all that follow.
        result = bind.execute(sa.text(query), execution_options={"yield_per": _BATCH})
        for batch in result.mappings().partitions():
            yield from batch
        return
    # The driver's own cursor stays open to the end, and then its table cannot be dropped.
    cursor = f"rows_{crc32(query.encode())}"
    bind.execute(sa.text(f"DECLARE {cursor} CURSOR FOR {query}"))
    while rows := bind.execute(sa.text(f"FETCH {_BATCH} FROM {cursor}")).mappings().all():
        yield from rows
    bind.execute(sa.text(f"CLOSE {cursor}"))


def _insert(table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        op.get_bind().execute(sa.insert(table), rows)
    rows.clear()


def _namespace(name: str) -> str:
    return name.split("/")[1]


def _copy_versions() -> None:
    blobs: dict[str, dict[str, Any]] = {}
    for row in _rows("SELECT * FROM old_versions ORDER BY adapter, number"):
        manifest = json.loads(row["manifest"])
        _insert(new.versions, [_version(row, manifest)])
        _copy_facts(row, manifest)
        for file in manifest["files"]:
            blobs[file["digest"]] = {
                "digest": file["digest"],
                "size_bytes": file["size_bytes"],
                "state": "present",
                "touched_us": row["create_time_us"],
            }
    _insert(new.blobs, list(blobs.values()))


def _version(row: sa.RowMapping, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "parent": row["adapter"],
        "number": row["number"],
        "namespace": _namespace(row["adapter"]),
        "kind": "adapter",
        "digest": row["digest"],
        "base": manifest["base"],
        "base_fingerprint": manifest["base_fingerprint"],
        "fingerprint": "",
        "method": "",
        "rank": manifest["rank"],
        "size_bytes": sum(file["size_bytes"] for file in manifest["files"]),
        "manifest": row["manifest"],
        "report": row["report"],
        "create_time_us": row["create_time_us"],
    }


def _copy_facts(row: sa.RowMapping, manifest: dict[str, Any]) -> None:
    parent, number = row["adapter"], row["number"]
    namespace, lineage = _namespace(parent), manifest["lineage"]
    key = {"parent": parent, "number": number}
    digests = sorted({file["digest"] for file in manifest["files"]})
    _insert(new.version_files, [{**key, "digest": digest} for digest in digests])
    _insert(
        new.version_metrics,
        [
            {**key, "namespace": namespace, "metric": metric[:255], "value": float(value)}
            for metric, value in lineage.get("metrics", {}).items()
            # SQLite has no NaN, and nothing can be sorted by one.
            if float(value) == float(value)
        ],
    )
    sources = {"base": manifest["base"], "job": lineage.get("job", "")}
    if lineage.get("data_digest"):
        sources["data"] = f"namespaces/{namespace}/data/{lineage['data_digest']}"
    _insert(
        new.lineage_edges,
        [
            {
                "result": f"{parent}/versions/{number}",
                "relation": relation,
                "source": source,
                "namespace": namespace,
            }
            for relation, source in sources.items()
            if source
        ],
    )


def _copy_aliases(name: str, table: sa.Table) -> None:
    for row in _rows(f"SELECT * FROM old_{name}"):
        values = dict(row)
        values["parent"] = values.pop("adapter")
        _insert(table, [values])


def _rewrite_json(table: str, key: tuple[str, ...]) -> None:
    """Stored versions and aliases call their adapter "parent" from now on."""
    where = " AND ".join(f"{column} = :{column}" for column in key)
    change = sa.text(f"UPDATE {table} SET resource = :resource WHERE {where}")
    query = f"SELECT * FROM {table} WHERE kind IN ('version', 'alias')"
    for row in list(_rows(query)):
        resource = json.loads(row["resource"])
        resource["parent"] = resource.pop("adapter")
        values = {column: row[column] for column in key}
        op.get_bind().execute(change, {**values, "resource": json.dumps(resource)})


def _fill_events() -> None:
    change = sa.text(
        "UPDATE events SET parent = :parent, action = :action WHERE revision = :revision"
    )
    for row in list(_rows("SELECT revision, kind, resource FROM events")):
        resource = json.loads(row["resource"])
        moved = row["kind"] == "alias" and resource["previous_version"]
        op.get_bind().execute(
            change,
            {
                "parent": resource.get("parent") or resource["name"],
                "action": "updated" if moved else "created",
                "revision": row["revision"],
            },
        )


def _fill_labels() -> None:
    for row in _rows("SELECT name, namespace, labels FROM adapters"):
        _insert(
            new.resource_labels,
            [
                {
                    "name": row["name"],
                    "number": 0,
                    "label": label,
                    "namespace": row["namespace"],
                    "value": value,
                }
                for label, value in json.loads(row["labels"]).items()
            ],
        )


def _fill_namespaces() -> None:
    used: dict[str, dict[str, Any]] = {}

    def of(namespace: str) -> dict[str, Any]:
        return used.setdefault(
            namespace,
            {"namespace": namespace, "used_bytes": 0, "used_versions": 0, "used_adapters": 0},
        )

    for row in _rows("SELECT namespace FROM bases"):
        of(row["namespace"])
    for row in _rows("SELECT namespace FROM adapters"):
        of(row["namespace"])["used_adapters"] += 1
    for row in _rows("SELECT namespace, size_bytes FROM versions"):
        of(row["namespace"])["used_versions"] += 1
        of(row["namespace"])["used_bytes"] += row["size_bytes"]
    _insert(new.namespaces, list(used.values()))


def _refuse_changes_of_audit() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change_of_audit() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "
            "audit_entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit()"
        )
        return
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entries_no_{action.lower()} BEFORE {action} ON audit_entries "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
