"""`graft bases`: the base models that adapters belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.output import Output, ago, short_digest
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.results import short_id

app = typer.Typer(no_args_is_help=True, help="Base models that adapters belong to.")


@app.command("list")
def list_bases(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List bases."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        bases = await client.bases.list()
        if as_json:
            out.json(bases)
        elif bases:
            out.table(
                ("BASE", "FINGERPRINT", "SOURCE", "RECORDED"),
                (
                    (short_id(one.name), short_digest(one.fingerprint), one.source, ago(one.create_time))
                    for one in bases
                ),
            )  # fmt: skip
        else:
            out.note("No bases yet. Record one: graft bases add FOLDER")

    run(ctx, out, work)


@app.command()
def add(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="config.json, a tokenizer and safetensors files.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default the folder's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Record a base model's folder; its bytes stay where they are."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        base = await client.bases.add(folder, name)
        if as_json:
            out.json(base)
        out.note(f"{short_id(base.name)} is recorded ({short_digest(base.fingerprint)}).")

    run(ctx, out, work)
