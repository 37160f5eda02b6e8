"""`graft models` and `graft residency`: what can be asked, and what is loaded."""

from __future__ import annotations

import typer
from rich.text import Text

from graft.cli.output import Output, short_digest, size
from graft.cli.session import JsonOption, run
from graft.cli.watch import short_version
from graft.client import Client
from graft.results import short_id


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
                (short_version(one.version), short_digest(one.version_digest), one.state.lower(),
                 one.in_flight, size(one.size_bytes), one.message)
                for one in held.adapters
            ),
        )  # fmt: skip

    run(ctx, out, work)
