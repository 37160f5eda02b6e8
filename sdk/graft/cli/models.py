"""`graft models`, `graft residency` and `graft watch`: what can be asked, what is loaded, what changes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from graft.cli.output import Output, short_digest, size
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.results import Change, short_id


def models(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List what a request may name as its model."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.models()
        if as_json:
            out.json(found)
            return
        out.table(
            ("MODEL", "VERSION", "DIGEST", "LOADED"),
            (
                (one.reference, short_id(one.version or ""), short_digest(one.version_digest or ""),
                 Text("yes", style="green") if one.resident else "no")
                for one in found
            ),
        )  # fmt: skip

    run(ctx, out, work)


def residency(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show what the engine really holds."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        held = await client.residency()
        if as_json:
            out.json(held)
            return
        out.note(
            f"base {held.base} ({short_digest(held.base_fingerprint)}), revision {held.revision}"
        )
        out.table(
            ("VERSION", "DIGEST", "STATE", "IN FLIGHT", "SIZE", "MESSAGE"),
            (
                (_short_version(one.version), short_digest(one.version_digest), one.state.lower(),
                 one.in_flight, size(one.size_bytes), one.message)
                for one in held.adapters
            ),
        )  # fmt: skip

    run(ctx, out, work)


def watch(
    ctx: typer.Context,
    after: Annotated[
        int | None,
        typer.Option(min=0, help="Only what came after this revision; 0 for all. By default: now."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print every change in the registry as it happens; Ctrl-C ends it."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        async for change in client.watch(after):
            if as_json:
                out.json(change)
            out.note(_describe(change))

    run(ctx, out, work)


def _describe(change: Change) -> str:
    moment = change.time.astimezone().strftime("%H:%M:%S") if change.time else ""
    return f"{change.revision:>6} {moment} {_what(change)}"


def _what(change: Change) -> str:
    if change.alias is not None:
        alias = change.alias
        by = f" by {alias.actor}" if alias.actor else ""
        why = f": {alias.reason}" if alias.reason else ""
        adapter = short_id(alias.name.rpartition("/aliases/")[0])
        return f"{adapter}@{short_id(alias.name)} names {short_id(alias.version)}{by}{why}"
    if change.version is not None:
        return f"{_short_version(change.version.name)} committed"
    if change.adapter is not None:
        return f"adapter {short_id(change.adapter.name)} created"
    return f"base {short_id(change.base.name)} recorded" if change.base else "changed"


def _short_version(name: str) -> str:
    adapter, _, number = name.rpartition("/versions/")
    return f"{short_id(adapter)}:{number}"
