"""`graft bases deploy`: a base on Kubernetes, rendered or applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from graft.cli.output import Output
from graft.cli.session import JsonOption, options, reported, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.files import write_atomic
from graft.kubernetes.apply import Applied, open_cluster
from graft.kubernetes.base_check import check_base
from graft.kubernetes.base_plan import (
    Adapters,
    BasePlan,
    Cache,
    Hardware,
    Replicas,
    Scaling,
    Weights,
)
from graft.kubernetes.base_template import base_manifests, selector

_HEADER = "# Made by `graft bases deploy`: the same base and options give the same lines.\n"
_MOST_NAMED = 5


def deploy(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="Its id in the registry.")],
    render: Annotated[
        Path | None,
        typer.Option(
            "--render", "-o", help="Write the manifests there, - for here; apply nothing."
        ),
    ] = None,
    model_claim: Annotated[
        str, typer.Option(help="PersistentVolumeClaim that holds the model's folder.")
    ] = "",
    model_path: Annotated[
        str, typer.Option(help="Its folder in the claim; without a claim, in the image.")
    ] = "",
    revision: Annotated[
        int, typer.Option(min=0, help="Version of the base that pods fetch from the registry.")
    ] = 0,
    model_size: Annotated[str, typer.Option(help="Room for a fetched revision.")] = "64Gi",
    model_storage_class: Annotated[
        str, typer.Option(help="Its storage class; without, the node's own disk.")
    ] = "",
    replicas: Annotated[
        int, typer.Option(min=0, help="How many; with --scale, how many at least.")
    ] = 2,
    scale: Annotated[Scaling, typer.Option(help="Who scales.")] = Scaling.NONE,
    max_replicas: Annotated[int, typer.Option(min=1, help="At most so many.")] = 8,
    queue_age: Annotated[
        float, typer.Option(help="Scale out while requests wait longer, in seconds.")
    ] = 1.0,
    in_flight_tokens: Annotated[
        int, typer.Option(help="Scale out while a replica has more; what its KV cache holds.")
    ] = 32_768,
    prometheus: Annotated[
        str, typer.Option(help="URL of Prometheus, for KEDA.")
    ] = "http://prometheus-operated.monitoring.svc:9090",
    wake_query: Annotated[
        str, typer.Option(help="PromQL above 0 when a base without replicas is asked for.")
    ] = "",
    gpus: Annotated[int, typer.Option(min=0, help="Of each replica; 0 for the CPU.")] = 0,
    gpu_resource: Annotated[str, typer.Option(help="What they are called.")] = "nvidia.com/gpu",
    cpu: Annotated[str, typer.Option(help="Of each replica.")] = "2",
    memory: Annotated[str, typer.Option(help="Of each replica.")] = "8Gi",
    shared_memory: Annotated[str, typer.Option(help="/dev/shm, with GPUs.")] = "8Gi",
    node_selector: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of its nodes; may be repeated.")
    ] = None,
    runtime_class: Annotated[str, typer.Option(help="For example nvidia.")] = "",
    cache: Annotated[Cache, typer.Option(help="Where fetched adapters are kept.")] = Cache.POD,
    cache_claim: Annotated[str, typer.Option(help="With --cache claim, its name.")] = "",
    cache_node_path: Annotated[
        str, typer.Option(help="With --cache node, the folder on each node.")
    ] = "/var/lib/graft-adapters",
    cache_size: Annotated[str, typer.Option(help="At most so much of them.")] = "16Gi",
    image: Annotated[str, typer.Option(help="Of inference; by default Graft's own.")] = "",
    pull_secret: Annotated[str, typer.Option(help="Secret for the image.")] = "",
    env_secret: Annotated[str, typer.Option(help="Secret with further variables.")] = "",
    tls_secret: Annotated[
        str, typer.Option(help="Secret with ca.crt, tls.crt and tls.key: TLS on both sides.")
    ] = "",
    tls_issuer: Annotated[
        str, typer.Option(help="cert-manager's Issuer that makes one instead: graft-ca.")
    ] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="max_adapters=64 and so on, of GRAFT_INFERENCE_*; repeatable."),
    ] = None,
    registry_in_cluster: Annotated[
        str, typer.Option(help="The registry as pods reach it.")
    ] = "graft-registry:7431",
    priority_class: Annotated[
        str, typer.Option(help="Of its pods; '' for none.")
    ] = "graft-serving",
    drain: Annotated[int, typer.Option(min=1, help="Seconds that requests may go on.")] = 120,
    start: Annotated[int, typer.Option(min=10, help="Seconds that a start may take.")] = 1800,
    kube_namespace: Annotated[str, typer.Option(help="Kubernetes' namespace.")] = "graft",
    kubeconfig: Annotated[Path | None, typer.Option(help="By default $KUBECONFIG.")] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig.")] = None,
    force: Annotated[bool, typer.Option(help="Take over what others manage.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Let the cluster check it, change nothing.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Ask the registry before it is applied.")] = True,
    wait: Annotated[bool, typer.Option(help="Until all replicas are new and ready.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait, seconds.")] = 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Serve a base on Kubernetes: one Deployment, rolled when it is deployed again.

    Old replicas go on until new ones hold what the production aliases name.
    """
    out, chosen = Output(as_json), options(ctx)
    with reported(out, chosen.debug):
        plan = BasePlan(
            base=base,
            weights=Weights(model_path, model_claim, revision, model_size, model_storage_class),
            namespace=chosen.namespace,
            kube_namespace=kube_namespace,
            registry=registry_in_cluster,
            adapters=Adapters(cache, cache_claim, cache_node_path, cache_size),
            hardware=Hardware(
                cpu, memory, gpus, gpu_resource, shared_memory, _pairs(node_selector), runtime_class
            ),
            replicas=Replicas(
                scale, replicas, max_replicas, queue_age, in_flight_tokens, prometheus, wake_query
            ),
            image=image,
            settings=_pairs(setting),
            env_secret=env_secret,
            pull_secret=pull_secret,
            tls_secret=tls_secret,
            tls_issuer=tls_issuer,
            priority_class=priority_class,
            drain_s=drain,
            start_s=start,
        )
        manifests = base_manifests(plan)
        if render is not None:
            _render(out, manifests, render)
            return

    async def work(client: Client) -> None:
        if check:
            await _check(out, client, plan)
        async with open_cluster(
            None if kubeconfig is None else str(kubeconfig), context
        ) as cluster:
            applied: list[Applied] = []
            for manifest in manifests:
                one = await cluster.apply(manifest, force=force, dry_run=dry_run)
                applied.append(one)
                out.note(f"{one.kind} {one.name} {_would(one.action, dry_run)}")
            if wait and not dry_run:
                await cluster.rolled_out(plan.name, plan.kube_namespace, timeout, out.note)
                labels = ",".join(f"{name}={value}" for name, value in selector(plan).items())
                await cluster.prune_configs(plan.name, plan.kube_namespace, labels)
        address = f"{plan.name}-headless.{plan.kube_namespace}.svc:7433"
        if as_json:
            out.json({"name": plan.name, "address": address, "dry_run": dry_run,
                      "applied": applied})  # fmt: skip
        out.note(f"Clients in the cluster: GRAFT_INFERENCE={address}")

    run(ctx, out, work)


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


def _pairs(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise GraftError(
                Reason.INVALID_REQUEST, f"{text!r} is not KEY=VALUE", next_step="Write KEY=VALUE."
            )
        found[name] = value
    return found
