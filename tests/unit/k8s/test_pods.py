"""What holds for every pod: restricted, read-only, probed, bounded, with time to drain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.common.server import LIVENESS, READINESS, STARTUP
from tests.support.k8s.render import K8S, ROOT, Object, containers, matches, named, pod_specs

# Those whose memory holds what a container's own /dev/shm has no room for.
SHARED_MEMORY_BYTES = 160 * 1024**2
OURS = "ghcr.io/graft-dev/"
# A drain may take its time twice, and closing takes up to this: see sdk/graft/cli/stack.py.
CLOSE_S = 15
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def each_container(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Every container with its owner and its pod."""
    for owner, _, spec in pod_specs(objects):
        for one in containers(spec):
            yield f"{owner}/{one['name']}", spec, one


def size_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def test_pods_pass_the_restricted_standard(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, owner
        assert security["runAsUser"] > 0, owner
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {k for k, v in spec.items() if v}, owner
        for volume in spec.get("volumes", ()):
            kinds = set(volume) - {"name"}
            assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}, owner
    for name, _, one in each_container(objects):
        security = one["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert not security.get("privileged"), name
        assert not [port for port in one.get("ports", ()) if "hostPort" in port], name


def test_the_namespace_enforces_it(objects: list[Object]) -> None:
    labels = named(objects, "Namespace")["graft"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_roots_are_read_only_and_what_must_be_written_is_a_volume_with_a_limit(
    objects: list[Object],
) -> None:
    for name, spec, one in each_container(objects):
        assert one["securityContext"]["readOnlyRootFilesystem"] is True, name
        mounted = {mount["mountPath"] for mount in one["volumeMounts"]}
        wanted = {"/tmp", "/home/graft", "/var/lib/graft"} if is_ours(one) else {"/tmp"}
        assert wanted <= mounted, name
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for volume in volumes.values():
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), name


def test_the_engine_has_shared_memory(objects: list[Object]) -> None:
    spec = named(objects, "Deployment")["graft-inference-default"]["spec"]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in spec["containers"][0]["volumeMounts"]}
    volume = next(one for one in spec["volumes"] if one["name"] == mounts["/dev/shm"])
    assert volume["emptyDir"]["medium"] == "Memory"
    assert size_bytes(volume["emptyDir"]["sizeLimit"]) > SHARED_MEMORY_BYTES


def test_our_pods_run_as_the_user_of_our_images(objects: list[Object]) -> None:
    users = set()
    for path in ROOT.glob("services/**/Dockerfile"):
        users |= set(re.findall(r"^USER (\d+):\d+$", path.read_text(), re.MULTILINE))
    assert len(users) == 1
    for owner, _, spec in pod_specs(objects):
        if is_ours(spec["containers"][0]):
            assert spec["securityContext"]["runAsUser"] == int(next(iter(users))), owner
            assert spec["securityContext"]["fsGroup"] == int(next(iter(users))), owner


@pytest.mark.parametrize(
    ("probe", "asks"),
    [("startupProbe", STARTUP), ("readinessProbe", READINESS), ("livenessProbe", LIVENESS)],
)
def test_every_service_is_probed_by_the_health_it_reports(
    objects: list[Object], probe: str, asks: str
) -> None:
    for owner, _, spec in pod_specs(objects):
        for one in spec["containers"]:
            ports = {port["containerPort"]: port["name"] for port in one["ports"]}
            asked = one[probe]["grpc"]
            if is_ours(one):
                assert asked["service"] == asks, owner
                # A probe speaks no TLS: with it, it asks at a port of its own.
                encrypted = any(v["name"] == "tls" for v in spec["volumes"])
                assert ports[asked["port"]] == ("health" if encrypted else "grpc"), owner
            assert asked["port"] in ports, owner
            if probe != "startupProbe":
                assert one[probe]["timeoutSeconds"] > 1, owner


def test_every_container_asks_for_what_it_needs_and_is_bounded_in_memory(
    objects: list[Object],
) -> None:
    for name, _, one in each_container(objects):
        resources = one["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"]), name
        assert "memory" in resources["limits"], name
        assert size_bytes(resources["limits"]["memory"]) >= size_bytes(
            resources["requests"]["memory"]
        ), name
        # Throttling helps nobody where requests are right.
        assert "cpu" not in resources["limits"], name


def test_a_pod_has_longer_to_end_than_its_drain_takes(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        one = spec["containers"][0]
        if not is_ours(one):
            continue
        values = environment(objects, one)
        (drain_s,) = (int(v) for k, v in values.items() if k.endswith("_DRAIN_TIMEOUT_S"))
        sleeping_s = one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        least_s = sleeping_s + 2 * drain_s + CLOSE_S
        assert spec["terminationGracePeriodSeconds"] >= least_s, owner


def test_what_others_call_lets_them_know_before_it_drains(objects: list[Object]) -> None:
    for name in ("graft-registry", "graft-inference-default"):
        spec = named(objects, "Deployment")[name]["spec"]["template"]["spec"]
        assert spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] > 0, name


def test_only_what_calls_the_api_server_gets_a_token(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        wanted = spec["serviceAccountName"] in ("graft-trainer", "graft-endpoint-picker")
        assert spec["automountServiceAccountToken"] is wanted, owner
    for account in named(objects, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


def test_services_do_not_set_variables_that_look_like_our_settings(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        assert spec["enableServiceLinks"] is False, owner


def test_images_have_the_version_of_this_checkout(objects: list[Object]) -> None:
    version = re.search(r'"(.+)"', (ROOT / "sdk/graft/version.py").read_text().split("VERSION")[-1])
    assert version is not None
    for name, _, one in each_container(objects):
        repository, _, tag = one["image"].rpartition(":")
        assert repository, name
        assert tag != "latest", name
        if is_ours(one):
            assert tag.removesuffix("-gpu") == version[1], name


def test_pods_have_a_priority_and_are_spread_where_there_can_be_several(
    objects: list[Object],
) -> None:
    classes = named(objects, "PriorityClass")
    budgets = named(objects, "PodDisruptionBudget").values()
    for owner, metadata, spec in pod_specs(objects):
        assert spec["priorityClassName"] in classes, owner
        if owner.startswith("Deployment/") and is_ours(spec["containers"][0]):
            keys = {one["topologyKey"] for one in spec["topologySpreadConstraints"]}
            assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, owner
            for one in spec["topologySpreadConstraints"]:
                assert matches(one["labelSelector"], metadata["labels"]), owner
        if is_ours(spec["containers"][0]):
            mine = [b for b in budgets if matches(b["spec"]["selector"], metadata["labels"])]
            assert len(mine) == 1, owner
            # A node can always be drained.
            assert mine[0]["spec"]["maxUnavailable"] >= 1, owner


def test_training_gives_way_and_still_makes_clusters_grow(dev: list[Object]) -> None:
    classes = {name: one["value"] for name, one in named(dev, "PriorityClass").items()}
    assert classes["graft-serving"] > classes["graft-control"] > 0 > classes["graft-training"]
    assert classes["graft-training"] > -10, "the cluster autoscaler ignores pods below that"


def test_gpus_are_asked_for_on_the_gpu_overlay_only(dev: list[Object], gpu: list[Object]) -> None:
    def gpus(objects: list[Object]) -> list[Any]:
        limits = (one["resources"]["limits"] for _, _, one in each_container(objects))
        return [one["nvidia.com/gpu"] for one in limits if "nvidia.com/gpu" in one]

    assert gpus(dev) == []
    assert gpus(gpu) == ["1"]


def test_the_job_that_fetches_a_base_is_held_to_the_same_rules(gpu: list[Object]) -> None:
    job = yaml.safe_load((K8S / "overlays/gpu/fetch-base/job.yaml").read_text())
    kubernetes_validate.validate(job, "1.36", strict=True)
    for rule in (
        test_roots_are_read_only_and_what_must_be_written_is_a_volume_with_a_limit,
        test_every_container_asks_for_what_it_needs_and_is_bounded_in_memory,
        test_only_what_calls_the_api_server_gets_a_token,
        test_services_do_not_set_variables_that_look_like_our_settings,
        test_images_have_the_version_of_this_checkout,
        test_pods_pass_the_restricted_standard,
    ):
        rule([job])
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] in named(gpu, "ServiceAccount")
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] in named(
        gpu, "PersistentVolumeClaim"
    )
    folder = next(one["value"] for one in spec["containers"][0]["env"] if one["name"] == "FOLDER")
    serving = named(gpu, "Deployment")["graft-inference-default"]["spec"]["template"]["spec"]
    assert environment(gpu, serving["containers"][0])["GRAFT_INFERENCE_BASE"] == folder


def is_ours(container: Object) -> bool:
    """Whether an image is built from this repository."""
    return str(container["image"]).startswith(OURS)


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """The variables of a container that are not secret."""
    maps = named(objects, "ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
