"""`graft hub`: versions to and from the Hugging Face Hub."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from graft.adapters import describe
from graft.cli.output import Output, short_digest
from graft.cli.session import JsonOption, run
from graft.cli.signing import ReferenceArgument, TrustedOption
from graft.client import Client
from graft.hub import Hub
from graft.keys import load_trusted
from graft.signatures import SignaturePolicy

app = typer.Typer(no_args_is_help=True, help="Versions to and from the Hugging Face Hub.")
RepositoryArgument = Annotated[str, typer.Argument(metavar="ORG/NAME")]


@app.command()
def push(
    ctx: typer.Context,
    reference: ReferenceArgument,
    repository: RepositoryArgument,
    revision: Annotated[str | None, typer.Option(help="An existing branch; else main.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is created.")
    ] = False,
    base_model: Annotated[
        str, typer.Option(help="Id of the base on the Hub, for the model card.")
    ] = "",
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Only what a trusted key signed.")
    ] = False,
    trusted: TrustedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version the content of a repository on the Hub, with its model card."""
    out, notes = Output(as_json), list[str]()
    policy = SignaturePolicy.REQUIRE if require_signature else SignaturePolicy.OFF

    async def work(client: Client) -> None:
        commit = await Hub(client).push(
            reference,
            repository,
            revision=revision,
            private=private,
            base_model=base_model,
            policy=policy,
            trusted=await asyncio.to_thread(load_trusted, trusted or []),
            note=notes.append,
        )
        if as_json:
            out.json(commit)
        for sentence in notes:
            out.warn(sentence)
        out.note(f"{commit.version} ({short_digest(commit.digest)}) is at {commit.url}")

    run(ctx, out, work)


@app.command()
def pull(
    ctx: typer.Context,
    repository: RepositoryArgument,
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="The adapter it belongs to.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; else main.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Name of a recorded base, or a base model's folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a repository's adapter the next version; its commit is kept in the lineage."""
    out, notes = Output(as_json), list[str]()

    async def work(client: Client) -> None:
        version = await Hub(client).pull(
            repository, adapter, revision=revision, base=base, note=notes.append
        )
        if as_json:
            out.json(version)
        for sentence in notes:
            out.note(sentence)
        out.note(f"{describe(version)} exists ({short_digest(version.digest)}).")

    run(ctx, out, work)
