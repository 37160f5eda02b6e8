"""The command `graft`: puts its groups together. What a command does is in its own module."""

from __future__ import annotations

from typing import Annotated

import typer

from graft.cli import up
from graft.cli.session import Options
from graft.names import DEFAULT_NAMESPACE

app = typer.Typer(
    name="graft",
    help="Train adapters, version them, and graft them onto a live engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    ctx: typer.Context,
    registry: Annotated[
        str | None, typer.Option(help="host:port of the registry; $GRAFT_REGISTRY.")
    ] = None,
    trainer: Annotated[
        str | None, typer.Option(help="host:port of the trainer; $GRAFT_TRAINER.")
    ] = None,
    inference: Annotated[
        str | None, typer.Option(help="host:port of inference; $GRAFT_INFERENCE.")
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", envvar="GRAFT_NAMESPACE", help="Where names are.")
    ] = DEFAULT_NAMESPACE,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="GRAFT_DEBUG", help="Show tracebacks.")
    ] = False,
) -> None:
    """Train adapters, version them, and graft them onto a live engine."""
    ctx.obj = Options(registry, trainer, inference, namespace, debug)


app.command()(up.up)
app.command()(up.down)


def main() -> None:
    """Entry point of the console script."""
    app()
