"""A whole namespace as one file: `graft import`, and what `graft export` does with a namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft.archive import export_namespace, import_namespace
from graft.cli.output import Output, size
from graft.cli.session import JsonOption, run
from graft.client import Client


async def export_archive(client: Client, out: Output, namespace: str, file: Path) -> None:
    """Writes a namespace to a file, and says what it holds.

    Raises:
        GraftError: NAMESPACE_NOT_FOUND; ALREADY_EXISTS, the file.
    """
    summary = await export_namespace(client, namespace, file)
    if out.as_json:
        out.json(summary)
    out.note(
        f"{file} holds {summary.bases} bases, {summary.adapters} adapters, "
        f"{summary.versions} versions and {summary.aliases} aliases in {size(summary.size_bytes)}."
    )
    out.note(f"Digest: {summary.digest}")


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
