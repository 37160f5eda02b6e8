"""What an operator decides about the pods of training jobs: image, nodes, volumes, limits, queue.

A policy file is YAML: the fields of PodPolicy under `default`, and under `namespaces` those that differ
for single Graft namespaces. Nothing here knows a job.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from graft.errors import GraftError, Reason
from graft.spec_file import did_you_mean
from graft.version import VERSION


@dataclass(frozen=True, slots=True)
class Storage:
    """A volume of the worker.

    Args:
        claim: name of a PersistentVolumeClaim in the pods' namespace; "" for a folder that ends with the pod.
        size_limit: of a folder that ends with the pod, for example "20Gi"; "" for the node's limit.
        read_only: mounted so.
    """

    claim: str = ""
    size_limit: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class WorkStorage(Storage):
    """The volume of checkpoints and results: a claim that all jobs share, or one of each job's own.

    Args:
        per_job: size of a claim that each job gets, for example "50Gi"; it outlives attempts and goes with
            the last one's Job. "" for none.
        storage_class: of it; "" for the cluster's default.
        access_mode: of it; "ReadWriteMany" where a job has several nodes.
    """

    per_job: str = ""
    storage_class: str = ""
    access_mode: str = "ReadWriteOnce"


@dataclass(frozen=True, slots=True)
class PodPolicy:
    """How workers' pods are made. Quantities are Kubernetes' ("500m", "8Gi").

    Args:
        image: of the worker.
        image_pull_policy: "IfNotPresent", "Always" or "Never".
        image_pull_secrets: names of Secrets.
        command: the worker's command line, to which the path of its spec is added.
        service_account: of the pods. Its token is mounted only where the worker itself writes to the API.
        queue: Kueue's LocalQueue; "" for no Kueue.
        priority_class: of the pods; "" for the cluster's default.
        runtime_class: for example "nvidia"; "" for the cluster's default.
        scheduler: name of another scheduler; "" for the default.
        node_selector: labels that a node must have.
        tolerations: as in a pod.
        gpu_resource: what accelerators are called, for example "nvidia.com/gpu" or "amd.com/gpu".
        gpus_per_slot: of a slot of the job's resources; 0 trains on CPU.
        requests: resources that one slot asks for; cpu, memory and ephemeral-storage are multiplied by slots.
        limits: the most that one slot may use; likewise.
        shm_size: of /dev/shm; it counts as memory.
        work: checkpoints and results. Without a claim they end with the pod: another attempt begins anew.
            For going on elsewhere, a shared claim must be mountable there (ReadWriteMany on several nodes);
            a claim of each job's own moves along.
        cache: bases and data sets fetched from the Hub; a claim keeps them for the next job.
        bases: folders of bases; mounted at BASES_DIR where a claim is named.
        scratch_size: limit of the home folder and of /tmp, each.
        grace_period_s: what a worker that is told to end has for its checkpoint.
        deadline_s: the longest that one attempt may take, from its start; 0 for no limit.
        keep_s: how long an ended attempt's Job is kept once its end is stored.
        run_as: user and group id; not 0.
        signing_key_secret: a Secret whose "key.pem" signs the versions; "" for none.
        tls_secret: a Secret with "ca.crt", "tls.crt" and "tls.key" by which workers speak TLS to the
            trainer and the registry; "" for plaintext.
        env: further variables.
        env_from_secrets: Secrets whose keys become variables (credentials of a store or of the Hub).
        env_from_config_maps: likewise ConfigMaps.
        labels, annotations: added to Jobs and pods.
        several_nodes: "auto" takes what the spec says, else JobSet where it is installed and an Indexed Job
            elsewhere; "job", "jobset" or "trainjob" leave the spec no choice.
        rendezvous_port: where processes of several nodes find each other.
        pod: merged over the pod template at the end, as {"metadata": ..., "spec": ...}: mappings merge,
            lists of things with a name merge by name, everything else replaces.
    """

    image: str = f"ghcr.io/graft-dev/worker:{VERSION}"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    command: tuple[str, ...] = ("python", "-m", "services.trainer.run")
    service_account: str = "graft-worker"
    queue: str = ""
    priority_class: str = "graft-training"
    runtime_class: str = ""
    scheduler: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    gpu_resource: str = "nvidia.com/gpu"
    gpus_per_slot: int = 1
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "4Gi"})
    limits: Mapping[str, str] = field(default_factory=lambda: {"memory": "16Gi"})
    shm_size: str = "2Gi"
    work: WorkStorage = WorkStorage()
    cache: Storage = Storage()
    bases: Storage = Storage(read_only=True)
    scratch_size: str = "10Gi"
    grace_period_s: int = 120
    deadline_s: int = 0
    keep_s: int = 3600
    run_as: int = 10001
    signing_key_secret: str = ""
    tls_secret: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    env_from_secrets: tuple[str, ...] = ()
    env_from_config_maps: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(
        default_factory=lambda: {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
    )
    several_nodes: str = "auto"
    rendezvous_port: int = 29500
    pod: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodPolicies:
    """The policy of every Graft namespace.

    Args:
        default: where nothing else is said.
        namespaces: of single namespaces.
    """

    default: PodPolicy = PodPolicy()
    namespaces: Mapping[str, PodPolicy] = field(default_factory=dict)

    def of(self, namespace: str) -> PodPolicy:
        """The policy of a Graft namespace."""
        return self.namespaces.get(namespace, self.default)

    @property
    def queued(self) -> bool:
        """Whether jobs of any namespace wait in a queue of Kueue's."""
        return any(one.queue for one in (self.default, *self.namespaces.values()))

    @property
    def with_own_claims(self) -> bool:
        """Whether jobs of any namespace have a claim of their own."""
        return any(one.work.per_job for one in (self.default, *self.namespaces.values()))


def read_policies(path: Path, base: PodPolicy | None = None) -> PodPolicies:
    """The policies in a YAML file.

    Args:
        path: of the file.
        base: what holds where the file says nothing.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _refused(f"The pod policy {path} cannot be read: {error}", "Mend it.") from None
    return policies_from_dict({} if values is None else values, base)


def policies_from_dict(values: Any, base: PodPolicy | None = None) -> PodPolicies:
    """The policies of {"default": {...}, "namespaces": {namespace: {...}}}; either may be left out.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    given = _mapping("The pod policy", values)
    if unknown := sorted(set(given) - {"default", "namespaces"}):
        raise _unknown("The pod policy", unknown[0], ["default", "namespaces"])
    default = _policy("default", given.get("default") or {}, base or PodPolicy())
    namespaces = _mapping("namespaces", given.get("namespaces") or {})
    return PodPolicies(
        default,
        {
            name: _policy(f"namespaces.{name}", one or {}, default)
            for name, one in namespaces.items()
        },
    )


_CHOICES = {
    "image_pull_policy": ("IfNotPresent", "Always", "Never"),
    "several_nodes": ("auto", "job", "jobset", "trainjob"),
    "access_mode": ("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"),
}
_LOWEST = {"run_as": 1, "rendezvous_port": 1}


def _policy(where: str, values: Any, base: PodPolicy) -> PodPolicy:
    given = _mapping(where, values)
    known = {one.name for one in dataclasses.fields(PodPolicy)}
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise _unknown(where, name, sorted(known))
        changes[name] = _value(f"{where}.{name}", name, value, getattr(base, name))
    return dataclasses.replace(base, **changes)


def _value(path: str, name: str, value: Any, default: Any) -> Any:
    """A field's value, held against the type of its default."""
    if isinstance(default, Storage):
        return _storage(path, value, default)
    if isinstance(default, tuple):
        return _list(path, value, Mapping if name == "tolerations" else str)
    if isinstance(default, Mapping):
        mapping = _mapping(path, value)
        return mapping if name == "pod" else _texts(path, mapping)
    if isinstance(default, int):
        return _whole_number(path, value, _LOWEST.get(name, 0))
    if not isinstance(value, str):
        raise _wrong(path, value, "a text")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise _wrong(path, value, " or ".join(_CHOICES[name]))
    return value


def _storage(path: str, value: Any, default: Storage) -> Storage:
    given = _mapping(path, value)
    known = [one.name for one in dataclasses.fields(default)]
    for name, one in given.items():
        if name not in known:
            raise _unknown(path, name, known)
        if not isinstance(one, type(getattr(default, name))):
            wanted = "true or false" if name == "read_only" else "a text"
            raise _wrong(f"{path}.{name}", one, wanted)
        if name in _CHOICES and one not in _CHOICES[name]:
            raise _wrong(f"{path}.{name}", one, " or ".join(_CHOICES[name]))
    storage = dataclasses.replace(default, **given)
    if storage.claim and getattr(storage, "per_job", ""):
        raise _refused(f"{path} has both claim and per_job", "Leave out one of them.")
    return storage


def _list(path: str, value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, kind) for one in value):
        raise _wrong(path, value, "a list of texts" if kind is str else "a list of mappings")
    return tuple(value)


def _texts(path: str, mapping: Mapping[str, Any]) -> dict[str, str]:
    for key, value in mapping.items():
        # YAML reads `cpu: 2` as a number, as Kubernetes does: a quantity all the same.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _wrong(f"{path}.{key}", value, "a text")
    return {key: str(value) for key, value in mapping.items()}


def _whole_number(path: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise _wrong(path, value, f"a whole number of at least {lowest}")
    return value


def _mapping(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong(path, value, "names with values")
    return dict(value)


def _wrong(path: str, value: Any, wanted: str) -> GraftError:
    return _refused(f"{path} is {value!r}; it must be {wanted}", "Change it in the pod policy.")


def _unknown(where: str, name: str, known: list[str]) -> GraftError:
    hint = did_you_mean(name, known) or f"Known here: {', '.join(known)}."
    return _refused(f"{where} has no field {name}", hint)


def _refused(message: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_REQUEST, message, next_step=next_step)
