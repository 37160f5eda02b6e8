"""`graft adapters sign` and `verify`, and the options of whatever verifies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.output import Output
from graft.cli.session import EXIT_CONFLICT, JsonOption, run
from graft.client import Client
from graft.keys import load_key, load_trusted

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER[:VERSION|@ALIAS]", help="bot, bot:7 or bot@production.")
]
TrustedOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted",
        envvar="GRAFT_TRUSTED_KEYS",
        help="A file with public keys whose signatures count; again for more.",
    ),
]


def sign(
    ctx: typer.Context,
    reference: ReferenceArgument,
    key: Annotated[
        Path, typer.Option(envvar="GRAFT_SIGNING_KEY", help="What `graft keys new` made.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Sign a version: say that you stand for what it consists of."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        private = await asyncio.to_thread(load_key, key)
        version = await client.adapters.sign(reference, private)
        if as_json:
            out.json(
                {
                    "version": version.name,
                    "digest": version.digest,
                    "key_id": private.public.key_id,
                }
            )
        out.note(f"{version.name} ({version.digest}) is signed by {private.public.key_id}.")

    run(ctx, out, work)


def verify(
    ctx: typer.Context,
    reference: ReferenceArgument,
    trusted: TrustedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a trusted key signed a version; ends with 4 when none did."""
    out = Output(as_json)

    async def work(client: Client) -> int:
        keys = await asyncio.to_thread(load_trusted, trusted or [])
        version, verdict = await client.adapters.verify(reference, keys)
        if as_json:
            found = {"version": version.name, "digest": version.digest, "verified": verdict.good}
            out.json(found | {"key_id": verdict.key_id, "problem": verdict.problem})
        if verdict.good:
            out.note(f"{version.name} ({version.digest}) is signed by {verdict.key_id}.")
            return 0
        out.note(f"{version.name} is not signed by a trusted key: {verdict.problem}.")
        return EXIT_CONFLICT

    run(ctx, out, work)
