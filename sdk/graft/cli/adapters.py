"""`graft adapters`: versions, where aliases point, and moving files to and from the registry."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from graft.adapters import describe
from graft.cli import promotion
from graft.cli.adapter_tables import (
    adapter_row,
    aliases_by_adapter,
    sorted_metric,
    version_fields,
    version_row,
)
from graft.cli.blending import blend
from graft.cli.metadata import DeletedOption, FilterOption, LimitOption, SortOption, find
from graft.cli.output import Output, ago, short_digest, size
from graft.cli.session import JsonOption, run
from graft.cli.signing import TrustedOption, sign, verify
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.keys import load_trusted
from graft.names import DEFAULT_ALIAS
from graft.results import Alias, short_id
from graft.signatures import SignaturePolicy

app = typer.Typer(no_args_is_help=True, help="Versions of adapters and where aliases point.")
AdapterArgument = Annotated[str, typer.Argument(metavar="ADAPTER")]
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER[:VERSION|@ALIAS]", help="bot, bot:7 or bot@production.")
]
AliasOption = Annotated[str, typer.Option(help="The alias.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]


@app.command("list")
def list_adapters(
    ctx: typer.Context,
    filter: FilterOption = "",
    sort: SortOption = "",
    deleted: DeletedOption = False,
    limit: LimitOption = 0,
    as_json: JsonOption = False,
) -> None:
    """List adapters with their aliases."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        adapters = await client.adapters.list(**find(filter, sort, deleted, limit))
        aliases = await client.adapters.aliases()
        if as_json:
            out.json(adapters)
        elif adapters:
            pointing = aliases_by_adapter(aliases)
            out.table(
                ("ADAPTER", "BASE", "VERSIONS", "ALIASES", "LABELS", "CREATED"),
                (adapter_row(adapter, pointing[adapter.name]) for adapter in adapters),
            )
        elif filter:
            out.note("No adapter is like that.")
        else:
            out.note("No adapters yet. Train one: graft train DATA --base FOLDER --adapter NAME")

    run(ctx, out, work)


@app.command()
def show(ctx: typer.Context, reference: ReferenceArgument, as_json: JsonOption = False) -> None:
    """Show a version: what it is made of, what was checked and where it came from."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        version = await client.adapters.version(reference)
        if as_json:
            out.json(version)
        out.fields(version_fields(version))

    run(ctx, out, work)


@app.command()
def versions(
    ctx: typer.Context,
    adapter: Annotated[str, typer.Argument(metavar="[ADAPTER]", help="- for all adapters.")] = "-",
    filter: FilterOption = "",
    sort: SortOption = "",
    deleted: DeletedOption = False,
    limit: LimitOption = 0,
    as_json: JsonOption = False,
) -> None:
    """List versions of an adapter, or of all, newest first."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.adapters.versions(adapter, **find(filter, sort, deleted, limit))
        if as_json:
            out.json(found)
            return
        metric = sorted_metric(sort)
        loss = metric.removeprefix("train_").upper()
        pointing = defaultdict[str, list[str]](list)
        for alias in await client.adapters.aliases(adapter):
            pointing[alias.version].append(short_id(alias.name))
        out.table(
            (
                "VERSION",
                "ALIASES",
                "LABELS",
                "DIGEST",
                "KIND",
                "RANK",
                "SIZE",
                "JOB",
                loss,
                "CREATED",
            ),
            (
                version_row(version, pointing[version.name], metric, whole=adapter == "-")
                for version in found
            ),
        )

    run(ctx, out, work)


@app.command()
def promote(
    ctx: typer.Context,
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER[:VERSION]")],
    version: Annotated[int | None, typer.Argument(min=1, help="Its number.")] = None,
    alias: AliasOption = DEFAULT_ALIAS,
    expect: Annotated[
        int | None,
        typer.Option(min=0, help="Only if it names this version now; 0: only if it is new."),
    ] = None,
    canary: Annotated[
        list[str] | None,
        typer.Option(metavar="VERSION=PERCENT", help="Give another version a part: 8=5."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help='Only if it holds: "eval_loss < @production".'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version; every engine takes it over without a restart."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        name, _, number = adapter.partition(":")
        wanted = version or (int(number) if number.isdigit() else None)
        if wanted is None:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"No version of {name} is named",
                next_step=f"Choose one of `graft adapters versions {name}`.",
            )
        moved = await client.adapters.promote(
            name,
            wanted,
            alias=alias,
            expected=expect,
            canaries=promotion.canaries_of(canary or ()),
            gate=require or (),
            reason=reason,
            validate_only=dry_run,
        )
        promotion.tell_gate(out, moved)
        if dry_run:
            out.note(f"{short_id(moved.name)} would name {short_id(moved.version)}.")
            if as_json:
                out.json(moved)
            return
        _moved(out, moved)

    run(ctx, out, work)


@app.command()
def rollback(
    ctx: typer.Context,
    adapter: AdapterArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Point an alias back at the version that it named before."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _moved(out, await client.adapters.rollback(adapter, alias=alias, reason=reason))

    run(ctx, out, work)


@app.command()
def history(
    ctx: typer.Context,
    adapter: AdapterArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    as_json: JsonOption = False,
) -> None:
    """List where an alias pointed, newest first, with who moved it and why."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        moves = await client.adapters.history(adapter, alias=alias)
        if as_json:
            out.json(moves)
            return
        out.table(
            ("VERSION", "CANARIES", "DIGEST", "MOVED", "BY", "WHY"),
            (
                (
                    "(deleted)" if move.deleted else short_id(move.version),
                    promotion.canaries_text(move),
                    short_digest(move.version_digest),
                    ago(move.update_time),
                    move.actor,
                    move.reason,
                )
                for move in moves
            ),
        )  # fmt: skip

    run(ctx, out, work)


@app.command()
def push(
    ctx: typer.Context,
    adapter: AdapterArgument,
    folder: Annotated[Path, typer.Argument(help="What PEFT's save_pretrained() wrote.")],
    base: Annotated[
        str | None, typer.Option(help="Name of a recorded base, or a base model's folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a PEFT folder as the adapter's next version; an old adapter_model.bin is converted."""
    out, notes = Output(as_json), list[str]()

    async def work(client: Client) -> None:
        with _transfers(out) as progress:
            version = await client.adapters.push(
                adapter, folder, base=base, progress=progress, note=notes.append
            )
        if as_json:
            out.json(version)
        for sentence in notes:
            out.note(sentence)
        name = describe(version)
        out.note(f"{name} exists ({short_digest(version.digest)}, {size(version.size_bytes)}).")
        out.note(f"Serve it: graft adapters promote {name}")

    run(ctx, out, work)


@app.command()
def pull(
    ctx: typer.Context,
    reference: ReferenceArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Only what a trusted key signed.")
    ] = False,
    trusted: TrustedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version to a folder that PEFT and vLLM load."""
    out, notes = Output(as_json), list[str]()
    # Whoever names keys wants to hear when none of them signed.
    policy = (
        SignaturePolicy.REQUIRE
        if require_signature
        else SignaturePolicy.WARN
        if trusted
        else SignaturePolicy.OFF
    )

    async def work(client: Client) -> None:
        keys = await asyncio.to_thread(load_trusted, trusted or [])
        with _transfers(out) as progress:
            version = await client.adapters.pull(
                reference, folder, policy=policy, trusted=keys, progress=progress, note=notes.append
            )
        if as_json:
            out.json(version)
        for sentence in notes:
            out.warn(sentence)
        out.note(f"{describe(version)} is in {folder} ({size(version.size_bytes)}, verified).")

    run(ctx, out, work)


app.command()(blend)
app.command()(sign)
app.command()(verify)


@contextmanager
def _transfers(out: Output) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar for each file, where somebody watches."""
    if not out.live:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=out.console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def moved(path: str, moved_bytes: int, size_bytes: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=size_bytes)
            bars.advance(tasks[path], moved_bytes)

        yield moved


def _moved(out: Output, alias: Alias) -> None:
    if out.as_json:
        out.json(alias)
    adapter = short_id(alias.name.rpartition("/aliases/")[0])
    before = f" (before: {short_id(alias.previous_version)})" if alias.previous_version else ""
    out.note(f"{adapter}@{short_id(alias.name)} names version {short_id(alias.version)}{before}.")
