"""`graft bases deploy`: a base on Kubernetes, rendered or applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
import yaml

from graft.cli import deploy_options
from graft.cli.output import Output
from graft.cli.session import JsonOption, options, reported, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.files import write_atomic
from graft.kubernetes.apply import Applied, Cluster, open_cluster
from graft.kubernetes.base_check import check_base
from graft.kubernetes.base_plan import BasePlan, Cache, Scaling
from graft.kubernetes.base_template import base_manifests, selector

_HEADER = "# Made by `graft bases deploy`: the same base and options give the same lines.\n"
_MOST_NAMED = 5


def deploy(
    ctx: typer.Context,
    base: deploy_options.Base,
    render: deploy_options.Render = None,
    model_claim: deploy_options.ModelClaim = "",
    model_path: deploy_options.ModelPath = "",
    revision: deploy_options.Revision = 0,
    model_size: deploy_options.ModelSize = "64Gi",
    model_storage_class: deploy_options.ModelStorageClass = "",
    replicas: deploy_options.Replicas = 2,
    scale: deploy_options.Scale = Scaling.NONE,
    max_replicas: deploy_options.MaxReplicas = 8,
    queue_age: deploy_options.QueueAge = 1.0,
    in_flight_tokens: deploy_options.InFlightTokens = 32_768,
    prometheus: deploy_options.Prometheus = "http://prometheus-operated.monitoring.svc:9090",
    wake_query: deploy_options.WakeQuery = "",
    gpus: deploy_options.Gpus = 0,
    gpu_resource: deploy_options.GpuResource = "nvidia.com/gpu",
    cpu: deploy_options.Cpu = "2",
    memory: deploy_options.Memory = "8Gi",
    shared_memory: deploy_options.SharedMemory = "8Gi",
    node_selector: deploy_options.NodeSelector = None,
    runtime_class: deploy_options.RuntimeClass = "",
    cache: deploy_options.Cache = Cache.POD,
    cache_claim: deploy_options.CacheClaim = "",
    cache_node_path: deploy_options.CacheNodePath = "/var/lib/graft-adapters",
    cache_size: deploy_options.CacheSize = "16Gi",
    image: deploy_options.Image = "",
    pull_secret: deploy_options.PullSecret = "",
    env_secret: deploy_options.EnvSecret = "",
    tls_secret: deploy_options.TlsSecret = "",
    tls_issuer: deploy_options.TlsIssuer = "",
    attestation_secret: deploy_options.AttestationSecret = "",
    setting: deploy_options.Setting = None,
    registry_in_cluster: deploy_options.RegistryInCluster = "graft-registry:7431",
    priority_class: deploy_options.PriorityClass = "graft-serving",
    drain: deploy_options.Drain = 120,
    start: deploy_options.Start = 1800,
    kube_namespace: deploy_options.KubeNamespace = "graft",
    kubeconfig: deploy_options.Kubeconfig = None,
    context: deploy_options.Context = None,
    force: deploy_options.Force = False,
    dry_run: deploy_options.DryRun = False,
    check: deploy_options.Check = True,
    wait: deploy_options.Wait = False,
    timeout: deploy_options.Timeout = 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Serve a base on Kubernetes: one Deployment, rolled when it is deployed again.

    Old replicas go on until new ones hold what the production aliases name.
    """
    out, chosen = Output(as_json), options(ctx)
    with reported(out, chosen.debug):
        plan = deploy_options.planned(chosen.namespace, ctx.params)
        manifests = base_manifests(plan)
        if render is not None:
            _render(out, manifests, render)
            return

    async def work(client: Client) -> None:
        if check:
            await _check(out, client, plan)
        file = None if kubeconfig is None else str(kubeconfig)
        async with open_cluster(file, context) as cluster:
            applied = await _apply(out, cluster, manifests, force=force, dry_run=dry_run)
            if wait and not dry_run:
                await _wait(out, cluster, plan, timeout)
        _tell(out, plan, applied, dry_run=dry_run)

    run(ctx, out, work)


async def _apply(
    out: Output, cluster: Cluster, manifests: list[dict[str, Any]], *, force: bool, dry_run: bool
) -> list[Applied]:
    applied: list[Applied] = []
    for manifest in manifests:
        one = await cluster.apply(manifest, force=force, dry_run=dry_run)
        applied.append(one)
        out.note(f"{one.kind} {one.name} {_would(one.action, dry_run)}")
    return applied


async def _wait(out: Output, cluster: Cluster, plan: BasePlan, timeout_s: float) -> None:
    """Until all replicas are new; what only the old ones read is no longer needed then."""
    await cluster.rolled_out(plan.name, plan.kube_namespace, timeout_s, out.note)
    labels = ",".join(f"{name}={value}" for name, value in selector(plan).items())
    await cluster.prune_configs(plan.name, plan.kube_namespace, labels)


def _tell(out: Output, plan: BasePlan, applied: list[Applied], *, dry_run: bool) -> None:
    address = f"{plan.name}-headless.{plan.kube_namespace}.svc:7433"
    if out.as_json:
        out.json({"name": plan.name, "address": address, "dry_run": dry_run, "applied": applied})
    out.note(f"Clients in the cluster: GRAFT_INFERENCE={address}")


def _render(out: Output, manifests: list[dict[str, Any]], target: Path) -> None:
    if out.as_json:
        out.json(manifests)
        return
    # What is shared by several objects is written out in each, without YAML's anchors.
    plain = json.loads(json.dumps(manifests))
    text = _HEADER + yaml.safe_dump_all(plain, sort_keys=False, width=1000)
    if str(target) == "-":
        typer.echo(text, nl=False)
        return
    try:
        write_atomic(target.absolute(), text.encode())
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{target} cannot be written: {error.strerror}",
            next_step="Name a file in a folder that exists.",
        ) from None
    out.note(f"{target} has {len(manifests)} objects: kubectl apply --server-side -f {target}")


async def _check(out: Output, client: Client, plan: BasePlan) -> None:
    try:
        found = await check_base(client, plan.base, plan.weights.revision)
    except GraftError as error:
        if error.reason is not Reason.UNAVAILABLE:
            raise
        raise GraftError(
            Reason.UNAVAILABLE,
            f"the registry cannot be asked about base {plan.base}: {error.message}",
            next_step="Name it with --registry (`kubectl port-forward service/graft-registry 7431`), "
            "or deploy with --no-check.",
        ) from None
    if found.elsewhere:
        some = ", ".join(found.elsewhere[:_MOST_NAMED])
        more = "" if len(found.elsewhere) <= _MOST_NAMED else " and others"
        out.warn(
            f"{len(found.elsewhere)} of {found.production} production aliases name versions that were "
            f"trained on other weights ({some}{more}). New replicas get no traffic until those aliases "
            "are moved to versions of the new weights; the old replicas go on meanwhile."
        )


def _would(action: str, dry_run: bool) -> str:
    return f"would be {action}" if dry_run and action != "unchanged" else action
