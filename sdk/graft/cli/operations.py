"""`graft gc`, `leases`, `quota`, and delete, undelete and purge of adapters, bases and their versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import typer

from graft.cli.output import Output, ago, short_digest, size
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, NotFoundError, Reason
from graft.names import adapter_name, base_name, version_name
from graft.operations import Collected, Ended, Limits
from graft.results import short_id

quota_app = typer.Typer(no_args_is_help=True, help="What a namespace uses and may use.")
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME[:VERSION]", help="bot, bot:7, or a full resource name.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log.")]
NamespaceArgument = Annotated[str | None, typer.Argument(metavar="[NAMESPACE]")]
LimitOption = Annotated[str | None, typer.Option(help="A number, or none; left out: as it is.")]
_LIMIT = re.compile(r"([0-9]+)\s*(KiB|MiB|GiB|TiB)?")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_LARGEST = 2**63 - 1
_MOST_SHOWN = 20


def gc(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove bytes that no version, undelete window or lease needs."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        done = await client.operations.collect(dry_run)
        if as_json:
            out.json(done)
        _collected(out, done, "would be removed" if dry_run else "were removed")

    run(ctx, out, work)


def leases(
    ctx: typer.Context,
    target: Annotated[
        str, typer.Option(help="Only those on this version's full name, or this digest.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List who needs which bytes: collection leaves them alone."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.operations.leases(target)
        if as_json:
            out.json(found)
        elif found:
            out.table(
                ("LEASE", "HOLDER", "PURPOSE", "HOLDS", "TTL", "SINCE"),
                (
                    (short_id(one.name), one.holder, one.purpose,
                     ", ".join(map(_short, one.targets[:3])) + (", ..." if one.targets[3:] else ""),
                     f"{one.ttl_s:g} s", ago(one.create_time))
                    for one in found
                ),
            )  # fmt: skip
        else:
            out.note("Nobody holds anything.")

    run(ctx, out, work)


@quota_app.command("show")
def show_quota(
    ctx: typer.Context, namespace: NamespaceArgument = None, as_json: JsonOption = False
) -> None:
    """Show what a namespace uses and may use; all of them with `-`."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        if namespace == "-":
            found = list(await client.operations.all_limits())
        else:
            found = [await client.operations.limits(namespace)]
        if as_json:
            out.json(found if namespace == "-" else found[0])
        _limits(out, found)

    run(ctx, out, work)


@quota_app.command("set")
def set_quota(
    ctx: typer.Context,
    namespace: NamespaceArgument = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="For example 500GiB, or none; left out: as it is.")
    ] = None,
    max_versions: LimitOption = None,
    max_adapters: LimitOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Set what a namespace may use; a limit below what it uses only stops growth."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        try:
            now = await client.operations.limits(namespace)
        except NotFoundError:
            now = None
        changed = await client.operations.set_limits(
            namespace,
            max_bytes=_limit(max_bytes, now.max_bytes if now else None),
            max_versions=_limit(max_versions, now.max_versions if now else None),
            max_adapters=_limit(max_adapters, now.max_adapters if now else None),
            reason=reason,
        )
        if as_json:
            out.json(changed)
        _limits(out, [changed])

    run(ctx, out, work)


def add_ends(app: typer.Typer, resource: Callable[[str, str], str], group: str) -> None:
    """Adds delete, undelete and purge to a group; resource makes a full name of (namespace, id)."""

    def full(client: Client, text: str) -> str:
        if text.startswith("namespaces/"):
            return text
        name, _, number = text.partition(":")
        owner = resource(client.namespace, name)
        if not number:
            return owner
        if not number.isdigit():
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{number!r} in {text!r} is not the number of a version",
                next_step=f"Write {name}:7.",
            )
        return version_name(owner, int(number))

    @app.command()
    def delete(
        ctx: typer.Context,
        name: NameArgument,
        etag: Annotated[str, typer.Option(help="Only if it is as it was read.")] = "",
        reason: ReasonOption = "",
        as_json: JsonOption = False,
    ) -> None:
        """Hide it; until its time is over it can be undeleted."""
        out = Output(as_json)

        async def work(client: Client) -> None:
            ended = await client.operations.delete(full(client, name), etag=etag, reason=reason)
            _ended(out, ended, f"is deleted; undo: graft {group} undelete {name}")

        run(ctx, out, work)

    @app.command()
    def undelete(ctx: typer.Context, name: NameArgument, as_json: JsonOption = False) -> None:
        """Bring it back as it was."""
        out = Output(as_json)

        async def work(client: Client) -> None:
            _ended(out, await client.operations.undelete(full(client, name)), "is back.")

        run(ctx, out, work)

    @app.command()
    def purge(
        ctx: typer.Context,
        name: NameArgument,
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
        reason: ReasonOption = "",
        as_json: JsonOption = False,
    ) -> None:
        """End what is deleted for good; its bytes go at the next collection."""
        out = Output(as_json)
        if not yes and not as_json and out.live:
            typer.confirm(f"Purge {name}? It cannot come back.", abort=True)
            yes = True

        async def work(client: Client) -> None:
            if not yes:
                raise GraftError(
                    Reason.INVALID_REQUEST,
                    f"{name} was not purged: nobody agreed to it",
                    next_step="Say --yes: what is purged cannot come back.",
                )
            ended = await client.operations.purge(full(client, name), reason=reason)
            _ended(out, ended, "is purged.")

        run(ctx, out, work)


def add_commands(app: typer.Typer, adapters: typer.Typer, bases: typer.Typer) -> None:
    """Adds all of them."""
    add_ends(adapters, adapter_name, "adapters")
    add_ends(bases, base_name, "bases")
    app.command()(gc)
    app.command()(leases)
    app.add_typer(quota_app, name="quota")


def _collected(out: Output, done: Collected, went: str) -> None:
    for name in done.purged_versions:
        out.note(f"{name}: its undelete window is over.")
    for digest in done.removed_digests[:_MOST_SHOWN]:
        out.note(digest)
    if done.removed_blobs > _MOST_SHOWN:
        out.note(f"... and {done.removed_blobs - _MOST_SHOWN} more")
    out.note(
        f"{done.removed_blobs} blobs ({size(done.removed_bytes)}) and {done.removed_uploads} "
        f"partial uploads {went}."
    )
    out.note(
        f"Kept: {done.kept_by_versions} by versions, {done.kept_by_leases} by leases, "
        f"{done.kept_by_age} because they are new."
    )


def _limits(out: Output, found: list[Limits]) -> None:
    out.table(
        ("NAMESPACE", "BYTES", "VERSIONS", "ADAPTERS"),
        (
            (
                short_id(one.name),
                _of(size(one.used_bytes), None if one.max_bytes is None else size(one.max_bytes)),
                _of(one.used_versions, one.max_versions),
                _of(one.used_adapters, one.max_adapters),
            )
            for one in found
        ),
    )


def _of(used: object, allowed: object | None) -> str:
    return f"{used}" if allowed is None else f"{used} of {allowed}"


def _limit(text: str | None, now: int | None) -> int | None:
    if text is None:
        return now
    if text == "none":
        return None
    found = _LIMIT.fullmatch(text)
    amount = int(found[1]) * _UNITS[found[2] or ""] if found else -1
    if not 0 <= amount <= _LARGEST:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{text!r} is no limit",
            next_step="Write a number, for bytes also like 500GiB, or none.",
        )
    return amount


def _ended(out: Output, ended: Ended, what: str) -> None:
    if out.as_json:
        out.json(ended)
    until = f" It stays until {ended.expire_time:%Y-%m-%d %H:%M} UTC." if ended.expire_time else ""
    out.note(f"{_short(ended.name)} {what}{until}")


def _short(name: str) -> str:
    """ "bot:7" of a version, twelve digits of a digest, "bot" of an adapter."""
    if name.startswith("sha256:"):
        return short_digest(name)
    owner, _, number = name.partition("/versions/")
    return f"{short_id(owner)}:{number}" if number else short_id(owner)
