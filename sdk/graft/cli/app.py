"""The command `graft`: puts its groups together. What a command does is in its own module."""

from __future__ import annotations

from typing import Annotated

import typer

from graft.cli import (
    adapters,
    archive,
    audit,
    bases,
    deploy,
    doctor,
    exporting,
    hub,
    jobs,
    keys,
    kubernetes_jobs,
    lineage,
    merging,
    metadata,
    methods,
    models,
    operations,
    plan,
    preflight,
    promotion,
    rollout,
    served_bases,
    text,
    train,
    up,
    verifying,
    watch,
)
from graft.cli.cluster import certificates
from graft.cli.cluster import commands as cluster
from graft.cli.output import Output
from graft.cli.session import JsonOption, Options
from graft.handshakes import CA, CERTIFICATE, KEY, SERVER_NAME
from graft.names import DEFAULT_NAMESPACE
from graft.version import VERSION

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
    tls_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", envvar=CA, help="CA of the services' certificates, or system."
        ),
    ] = None,
    tls_certificate: Annotated[
        str | None,
        typer.Option(metavar="FILE", envvar=CERTIFICATE, help="Yours, where services ask for it."),
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", envvar=KEY, help="Key of your certificate.")
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", envvar=SERVER_NAME, help="Name of the services' certificates."
        ),
    ] = None,
) -> None:
    """Train adapters, version them, and graft them onto a live engine."""
    ctx.obj = Options(
        registry,
        trainer,
        inference,
        namespace,
        debug,
        tls_ca,
        tls_certificate,
        tls_key,
        tls_server_name,
    )


def version(as_json: JsonOption = False) -> None:
    """Print the version of graft."""
    out = Output(as_json)
    if as_json:
        out.json({"graft": VERSION})
    out.note(f"graft {VERSION}")


def _add_commands() -> None:
    # In the order in which somebody meets them.
    app.command()(up.up)
    app.command()(up.down)
    app.command()(methods.methods)
    app.command()(preflight.preflight)
    app.command()(plan.plan)
    app.command()(plan.recommend)
    app.command()(train.train)
    kubernetes_jobs.add_commands(jobs.app)
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(adapters.app, name="adapters")
    app.add_typer(bases.app, name="bases")
    app.add_typer(rollout.app, name="rollout")
    app.add_typer(keys.app, name="keys")
    app.add_typer(hub.app, name="hub")
    app.command()(merging.merge)
    app.command()(merging.convert)
    app.command("export")(exporting.export_command)
    app.command("import")(archive.import_command)
    app.command()(models.models)
    app.command()(models.residency)
    app.command()(text.chat)
    app.command()(text.generate)
    app.command()(verifying.verify)
    app.command()(watch.watch)
    app.command()(lineage.lineage)
    app.add_typer(audit.app, name="audit")
    bases.app.command()(deploy.deploy)
    served_bases.add_to(bases.app)
    promotion.add_commands(adapters.app)
    metadata.add_commands(adapters.app, bases.app)
    operations.add_commands(app, adapters.app, bases.app)
    app.command()(doctor.doctor)
    cluster.app.command()(certificates.certificates)
    app.add_typer(cluster.app, name="cluster")
    app.command()(version)


_add_commands()


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="graft")
