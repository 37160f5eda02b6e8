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
            ("MODEL", "VERSION", "DIGEST", "LOADED", "ENGINE"),
            (
                (one.reference, "(blend)" if one.blend else short_id(one.version or ""), short_digest(one.version_digest or ""),
                 Text("yes", style="green") if one.resident else "no", one.engine)
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
        base = held.base_version or held.base
        quantized = held.base_quantization
        how = f", {quantized}" if quantized not in ("", "none") else ""
        coming = f", being switched to {held.base_switch}" if held.base_switch else ""
        out.note(
            f"base {base} ({short_digest(held.base_fingerprint)}{how}), revision {held.revision}{coming}"
        )
        if held.page_rank:
            out.note(
                f"{held.slot_room_taken} of {held.slot_room} pages of rank {held.page_rank} taken"
            )
        out.table(
            ("VERSION", "DIGEST", "STATE", "ENGINE", "IN FLIGHT", "SIZE", "MESSAGE"),
            (
                (one.blend or short_version(one.version), short_digest(one.version_digest), one.state.lower(),
                 one.engine, one.in_flight, size(one.size_bytes), one.message)
                for one in held.adapters
            ),
        )  # fmt: skip

    run(ctx, out, work)
