"""`graft bases served`, `switch` and `cancel`: the base of a running inference service."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Annotated

import typer

from graft.cli.output import Output, short_digest, size
from graft.cli.session import JsonOption, options, run
from graft.client import Client
from graft.served_base import BaseSwitch, SwitchStrategy, failure_of

EndpointArgument = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="host:port of one inference service.")
]
_BUSY = {
    "CHECKING": "checking",
    "FETCHING": "fetching and verifying its files",
    "DRAINING": "waiting for requests on the old base",
    "STARTING": "starting its engine",
    "RETIRING": "serving; the old base's requests end",
    "RESTORING": "bringing the old base back",
}


def add_to(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command()(served)
    app.command()(switch)
    app.command()(cancel)


def served(ctx: typer.Context, endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Show which base a service serves, and how its last change went."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.served_base.get()
        if as_json:
            out.json(found)
            return
        version, last = found.version, found.last_switch
        digest = short_digest(found.version_digest or "")
        out.fields(
            (
                ("base", found.name),
                ("reference", found.reference),
                ("version", f"{version} ({digest})" if version else "none: a folder"),
                ("fingerprint", found.fingerprint),
                ("quantization", found.quantization or "not known"),
                ("context", f"{found.max_context_tokens} tokens"),
                ("ready", "yes" if found.ready else "no"),
                ("last switch", _line(last) if last else "none"),
            )
        )

    _at(ctx, endpoint)
    run(ctx, out, work)


def switch(
    ctx: typer.Context,
    endpoint: EndpointArgument,
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="bases/name, bases/name@alias, bases/name:7, or a folder's path on its machine.",
        ),
    ],
    strategy: Annotated[
        SwitchStrategy,
        typer.Option(
            help="beside: the old engine serves until the new one does; replace: it ends first."
        ),
    ] = SwitchStrategy.AUTO,
    quantize: Annotated[
        str, typer.Option(help="Quantize while loading, for example fp8 on a GPU.")
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16 or float32; by default as the service is set.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end, or only for the checks.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve another base: beside the old one where memory allows, else in its place.

    Everything is checked before anything is touched; when the new base fails, the old one serves. Exit
    codes: 0 done, 2 no such name or not a base that can be served, 3 no such version, 4 another switch is under
    way, it was refused or does not fit, 5 nobody answers, 1 anything else.
    """
    out = Output(as_json)

    async def work(client: Client) -> None:
        stream = client.served_base.switch(
            base, strategy=strategy, quantization=quantize, dtype=dtype, validate_only=check
        )
        told: BaseSwitch | None = None
        async with aclosing(stream):
            async for told in stream:
                if not as_json:
                    out.note(_line(told))
                if not wait and told.stage in ("DRAINING", "STARTING", "RETIRING"):
                    break
        assert told is not None, "it tells at least of its end"
        if as_json:
            out.json(told)
        failure = failure_of(told)
        if failure is not None:
            raise failure

    _at(ctx, endpoint)
    run(ctx, out, work)


def cancel(ctx: typer.Context, endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """End a switch that is under way: the old base goes on, or comes back."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        told = await client.served_base.cancel()
        if as_json:
            out.json(told)
        out.note(f"{_line(told)}; {told.from_base} serves.")

    _at(ctx, endpoint)
    run(ctx, out, work)


def _at(ctx: typer.Context, endpoint: str) -> None:
    """The command's own endpoint, in place of --inference."""
    ctx.obj = replace(options(ctx), inference=endpoint)


def _line(told: BaseSwitch) -> str:
    memory = ""
    if told.stage == "CHECKING" and told.needed_bytes:
        memory = f" (about {size(told.needed_bytes)} needed, {size(told.available_bytes)} free)"
    how = "" if told.strategy is SwitchStrategy.AUTO else f", {told.strategy}"
    done = _BUSY.get(told.stage, told.message if told.over else told.stage.lower())
    return f"{told.to_base}{how}: {done}{memory}"
