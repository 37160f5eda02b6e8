"""`graft bases`: the base models that adapters belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.adapter_tables import base_version_fields
from graft.cli.metadata import (
    DeletedOption,
    FilterOption,
    LimitOption,
    SortOption,
    find,
    labels_text,
)
from graft.cli.output import Output, ago, short_digest, size
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.results import short_id

app = typer.Typer(no_args_is_help=True, help="Base models that adapters belong to.")


@app.command("list")
def list_bases(
    ctx: typer.Context,
    filter: FilterOption = "",
    sort: SortOption = "",
    deleted: DeletedOption = False,
    limit: LimitOption = 0,
    as_json: JsonOption = False,
) -> None:
    """List bases."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        bases = await client.bases.list(**find(filter, sort, deleted, limit))
        if as_json:
            out.json(bases)
        elif bases:
            out.table(
                ("BASE", "FINGERPRINT", "SOURCE", "LABELS", "RECORDED"),
                (
                    (
                        short_id(one.name) + (" (deleted)" if one.deleted else ""),
                        short_digest(one.fingerprint),
                        one.source,
                        labels_text(one.labels),
                        ago(one.create_time),
                    )
                    for one in bases
                ),
            )
        elif filter:
            out.note("No base is like that.")
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


@app.command()
def push(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A merged, fully tuned or quantized model.")],
    base: Annotated[str, typer.Option(help="Its base; by default named like the folder.")] = "",
    method: Annotated[str, typer.Option(help="How it was made: merge, full, quantize.")] = "full",
    parent: Annotated[
        list[str] | None, typer.Option(help="Full name of a version that it was made from.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model's folder the next version of a base; its bytes are stored and verified."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        version = await client.base_versions.push(folder, base, method=method, parents=parent or ())
        if as_json:
            out.json(version)
        name = short_id(version.name.rpartition("/versions/")[0])
        out.note(
            f"{name}:{version.number} is verified and stored ({short_digest(version.digest)})."
        )

    run(ctx, out, work)


@app.command()
def versions(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE")],
    filter: FilterOption = "",
    sort: SortOption = "",
    deleted: DeletedOption = False,
    limit: LimitOption = 0,
    as_json: JsonOption = False,
) -> None:
    """List a base's versions, newest first."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.base_versions.list(base, **find(filter, sort, deleted, limit))
        if as_json:
            out.json(found)
            return
        out.table(
            ("VERSION", "METHOD", "QUANTIZATION", "FINGERPRINT", "SIZE", "CREATED"),
            (
                (one.number, one.method, one.quantization, short_digest(one.fingerprint),
                 size(one.size_bytes), ago(one.create_time))
                for one in found
            ),
        )  # fmt: skip

    run(ctx, out, work)


@app.command()
def show(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE")],
    version: Annotated[int, typer.Argument(min=1)],
    as_json: JsonOption = False,
) -> None:
    """Show a base's version: what it is made of, what was checked and measured, and where it came from."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.base_versions.get(base, version)
        if as_json:
            out.json(found)
        out.fields(base_version_fields(found))

    run(ctx, out, work)


@app.command()
def pull(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE")],
    version: Annotated[int, typer.Argument(min=1)],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    as_json: JsonOption = False,
) -> None:
    """Write a base's version to a folder that transformers and vLLM load."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.base_versions.pull(base, version, folder)
        if as_json:
            out.json(found)
        out.note(f"{folder} holds {base}:{found.number}.")

    run(ctx, out, work)
