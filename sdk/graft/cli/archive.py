"""`graft export` and `graft import`: a whole namespace as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft.archive import export_namespace, import_namespace
from graft.cli.output import Output, size
from graft.cli.session import JsonOption, run
from graft.client import Client


def export_command(
    ctx: typer.Context,
    namespace: Annotated[str, typer.Argument(help="What to export.")],
    file: Annotated[Path, typer.Argument(help="A new file, a tar.")],
    as_json: JsonOption = False,
) -> None:
    """Write a namespace to one file: bases, adapters, versions with their bytes, aliases."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        summary = await export_namespace(client, namespace, file)
        if as_json:
            out.json(summary)
        out.note(
            f"{file} holds {summary.bases} bases, {summary.adapters} adapters, "
            f"{summary.versions} versions and {summary.aliases} aliases in {size(summary.size_bytes)}."
        )
        out.note(f"Digest: {summary.digest}")

    run(ctx, out, work)


def import_command(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `graft export` wrote.")],
    namespace: Annotated[
        str | None, typer.Option(help="Another namespace than it was exported from.")
    ] = None,
    digest: Annotated[str | None, typer.Option(help="What the export said; else refused.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make what an archive holds, verified; again, it goes on where it stopped."""
    out, notes = Output(as_json), list[str]()

    async def work(client: Client) -> None:
        made = await import_namespace(
            client, file, namespace=namespace, digest=digest, note=notes.append
        )
        if as_json:
            out.json(made)
        for sentence in notes:
            out.warn(sentence)
        out.note(
            f"Made {made.bases} bases, {made.adapters} adapters, {made.versions} versions and "
            f"{made.aliases} aliases in {made.namespace}; {made.existing_versions} versions were "
            "there already."
        )

    run(ctx, out, work)
