"""`graft cluster doctor`: what a cluster has and lacks for Graft, and the next step for each."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.cluster.permissions import look_at_permissions
from graft.cli.cluster.platform import look_at_platform
from graft.cli.cluster.workloads import look_at_workloads
from graft.cli.doctor import Finding, Verdict, show
from graft.cli.output import Output
from graft.cli.session import EXIT_OTHER, JsonOption, options, reported
from graft.kubernetes.api import Api, ApiError
from graft.kubernetes.connect import opened
from graft.kubernetes.refusals import in_words

app = typer.Typer(no_args_is_help=True, help="What Graft needs of a Kubernetes cluster.")


@app.callback()
def cluster() -> None:
    """What Graft needs of a Kubernetes cluster."""


@app.command()
def doctor(
    ctx: typer.Context,
    kube_namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Kubernetes' namespace, where Graft is or will be.")
    ] = "graft",
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig; its current one.")] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="A file; $KUBECONFIG, else ~/.kube/config.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For each answer.")] = 15.0,
    as_json: JsonOption = False,
) -> None:
    """Check a cluster: versions, GPUs, storage, add-ons, permissions, images, what is installed.

    Changes nothing. Exits with 1 when something necessary is missing, 5 when the cluster cannot be reached.
    """
    out, chosen = Output(as_json), options(ctx)

    async def look() -> list[Finding]:
        async with opened(kubeconfig, context or "", timeout_s=timeout_s) as found:
            return await examine(found, kube_namespace)

    with reported(out, chosen.debug):
        waiting = out.console.status("Asking the cluster") if out.live else contextlib.nullcontext()
        with waiting:
            findings = asyncio.run(look())
    show(out, findings)
    if any(one.verdict is Verdict.MISSING for one in findings):
        raise typer.Exit(EXIT_OTHER)


async def examine(cluster: Api, namespace: str) -> list[Finding]:
    """Everything that is found out, in the order in which it is shown.

    Raises:
        GraftError: UNAVAILABLE, PERMISSION_DENIED; INTERNAL for an answer that makes no sense.
    """
    try:
        return [
            *[one async for one in look_at_platform(cluster, namespace)],
            *await look_at_permissions(cluster, namespace),
            *[one async for one in look_at_workloads(cluster, namespace)],
        ]
    except ApiError as error:
        raise in_words(error, "a question about the cluster") from None
