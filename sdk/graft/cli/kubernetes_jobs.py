"""`graft jobs render` and `graft jobs submit`: jobs as manifests, and jobs without somebody who watches them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
import yaml

from graft.cli.cluster.create import create_objects, installed_groups
from graft.cli.job_files import kind_of, read_job
from graft.cli.output import Output, to_json
from graft.cli.session import JsonOption, options, reported, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.kubernetes.connect import opened
from graft.kubernetes.group_template import child_job_name
from graft.kubernetes.job_template import Manifest, in_order
from graft.kubernetes.manual_jobs import ManualJob, nodes_of, render_job
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy, read_policies
from graft.results import short_id

_IN_CLUSTER_REGISTRY = "graft-registry:7431"
# Without it kubectl keeps a copy of the object in one of its annotations, which hold 256 KiB together.
_PLAIN_APPLY_BYTES = 200_000
_MANIFEST, _CLUSTER = "Manifest", "Cluster"

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON, as for `graft train -f`.")
]
KindOption = Annotated[
    str,
    typer.Option(
        help="train, merge or evaluate: what the spec is of; told from its fields if not given."
    ),
]
NameOption = Annotated[
    str,
    typer.Option(help="Of the Job; the spec's file name if not given.", rich_help_panel=_MANIFEST),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        help="How pods are made (docs/launcher.md), for example deploy/k8s/overlays/dev/pods.yaml.",
        rich_help_panel=_MANIFEST,
    ),
]
ImageOption = Annotated[str, typer.Option(help="Of the worker.", rich_help_panel=_MANIFEST)]
PodRegistryOption = Annotated[
    str,
    typer.Option("--pod-registry", help="The registry, as pods see it.", rich_help_panel=_MANIFEST),
]
KubeNamespaceOption = Annotated[
    str, typer.Option("--kube-namespace", help="Kubernetes' namespace.", rich_help_panel=_CLUSTER)
]
ScheduleOption = Annotated[
    str,
    typer.Option(
        help='Makes a CronJob, for example "30 2 * * *" for every night.', rich_help_panel=_MANIFEST
    ),
]
TimeZoneOption = Annotated[
    str, typer.Option(help="Of the schedule, for example Etc/UTC.", rich_help_panel=_MANIFEST)
]


def add_commands(app: typer.Typer) -> None:
    """Adds render and submit."""
    app.command()(render)
    app.command()(submit)


def render(
    ctx: typer.Context,
    spec: SpecArgument,
    kind: KindOption = "",
    name: NameOption = "",
    policy: PolicyOption = None,
    image: ImageOption = "",
    pod_registry: PodRegistryOption = _IN_CLUSTER_REGISTRY,
    kube_namespace: KubeNamespaceOption = "",
    schedule: ScheduleOption = "",
    time_zone: TimeZoneOption = "",
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file; standard output if not given."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a job as a Kubernetes manifest that needs nothing but `kubectl apply -f`.

    The spec is checked when the pod starts, and small data files go along in the ConfigMap.
    """
    out, graft_namespace = Output(as_json), options(ctx).namespace
    with reported(out, options(ctx).debug):
        job, notes = _job(
            spec, kind, name, pod_registry, kube_namespace, graft_namespace, schedule, time_zone
        )
        manifests = in_order(render_job(job, _policy(job, policy, image)))
        for note in notes:
            out.warn(note)
        text = _json_list(manifests) if as_json else to_yaml(manifests)
        if target is None:
            typer.echo(text, nl=False)
        else:
            _write(target, text)
            out.note(f"Wrote {target}. Apply it: kubectl apply -f {target}")


def submit(
    ctx: typer.Context,
    spec: SpecArgument,
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="Create the Job in the cluster of the kubeconfig, without a trainer.",
            rich_help_panel=_CLUSTER,
        ),
    ] = False,
    kind: KindOption = "",
    name: NameOption = "",
    policy: PolicyOption = None,
    image: ImageOption = "",
    pod_registry: PodRegistryOption = _IN_CLUSTER_REGISTRY,
    kube_namespace: KubeNamespaceOption = "",
    context: Annotated[str, typer.Option(help="Of the kubeconfig.", rich_help_panel=_CLUSTER)] = "",
    schedule: ScheduleOption = "",
    time_zone: TimeZoneOption = "",
    as_json: JsonOption = False,
) -> None:
    """Start a job and come back: at the trainer, or with --kubernetes as a Job of its own.

    Exit codes: 0 created, 1 not allowed, 2 the spec, a name or the kubeconfig is wrong, 3 no such namespace,
    4 it exists, 5 nobody answers.
    """
    out, chosen = Output(as_json), options(ctx)
    if not kubernetes:
        run(ctx, out, lambda client: _to_trainer(client, out, spec, kind))
        return
    with reported(out, chosen.debug):
        job, notes = _job(
            spec, kind, name, pod_registry, kube_namespace, chosen.namespace, schedule, time_zone
        )
        pods = _policy(job, policy, image)
        # What is wrong with it is said also where no cluster answers.
        render_job(job, pods)
        for note in notes:
            out.warn(note)
        made, namespace = asyncio.run(_create(context, job, pods))
        _show(out, made, namespace)


async def _to_trainer(client: Client, out: Output, spec: Path, kind: str) -> None:
    handle = await client.submit(spec, kind)
    if out.as_json:
        out.json({"job": handle.name})
    out.note(
        f"{short_id(handle.name)} is created. Watch it: graft jobs watch {short_id(handle.name)}"
    )


async def _create(context: str, job: ManualJob, policy: PodPolicy) -> tuple[Manifest, str]:
    async with opened(context=context, namespace=job.namespace) as api:
        installed = await installed_groups(api) if nodes_of(job) > 1 else None
        manifests = render_job(job, policy, installed)
        await create_objects(api, manifests)
        return manifests[0], api.namespace


def _show(out: Output, made: Manifest, namespace: str) -> None:
    kind, name = made["kind"], made["metadata"]["name"]
    if out.as_json:
        out.json({"kind": kind, "name": name, "namespace": namespace})
    out.note(f"{kind} {name} is created in the namespace {namespace}.")
    follow = {"Job": f"job/{name}", "CronJob": ""}.get(kind, f"job/{child_job_name(name)}")
    if follow:
        out.note(f"Follow it:   kubectl -n {namespace} logs -f {follow}")
    what = f"{kind.lower()} {name}"
    out.note(f"How it goes: kubectl -n {namespace} describe {what}")


def _job(
    spec: Path,
    kind: str,
    name: str,
    registry: str,
    namespace: str,
    graft_namespace: str,
    schedule: str,
    time_zone: str,
) -> tuple[ManualJob, list[str]]:
    message, files, notes = read_job(spec, kind)
    if sum(len(text.encode()) for text in files.values()) > _PLAIN_APPLY_BYTES:
        notes.append("The data is large: `kubectl apply` needs --server-side for it.")
    job = ManualJob(
        name=name or spec.stem.lower().replace("_", "-").replace(".", "-"),
        kind=kind_of(message),
        spec=message,
        registry_address=registry,
        namespace=namespace,
        graft_namespace=graft_namespace,
        files=files,
        schedule=schedule,
        time_zone=time_zone,
    )
    return job, notes


def _policy(job: ManualJob, policy_file: Path | None, image: str) -> PodPolicy:
    policies = PodPolicies() if policy_file is None else read_policies(policy_file)
    policy = policies.of(job.graft_namespace)
    return replace(policy, image=image) if image else policy


def _text(dumper: Any, text: Any) -> yaml.Node:
    style = "|" if "\n" in text else None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and the same labels twice rather than by reference."""

    yaml_representers: ClassVar = {**yaml.SafeDumper.yaml_representers, str: _text}

    def ignore_aliases(self, _data: object) -> bool:
        return True


def to_yaml(manifests: list[Manifest]) -> str:
    """Manifests as one YAML file of several documents."""
    documents = (
        yaml.dump(one, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        for one in manifests
    )
    return "---\n".join(documents)


def _json_list(manifests: list[Manifest]) -> str:
    return to_json({"apiVersion": "v1", "kind": "List", "items": manifests}) + "\n"


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, "utf-8")
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{target} cannot be written ({error.strerror})",
            next_step="Name another file with --output.",
        ) from None
