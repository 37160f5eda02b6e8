"""The objects of a deployed base: valid for every cluster of 1.30 to 1.36, restricted, and consistent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from graft.errors import GraftError
from graft.kubernetes.base_plan import (
    Adapters,
    BasePlan,
    Cache,
    Hardware,
    Replicas,
    Scaling,
    Weights,
    size_bytes,
)
from graft.kubernetes.base_scaling import QUEUE_AGE, REQUESTS, TOKENS
from graft.kubernetes.base_template import base_manifests, selector
from graft.kubernetes.pod_tls import TLS_DIR
from graft.tls import Tls

from services.common.server import LIVENESS, READINESS, STARTUP
from services.inference.config import InferenceSettings
from tests.support.k8s.custom import custom_schema
from tests.support.models import REPOSITORY
from tests.support.stack import Result

EXAMPLES = REPOSITORY / "deploy/k8s/bases"
VERSIONS = [f"1.{minor}" for minor in range(30, 37)]
IMAGE = Weights(path="/opt/graft/examples/base")
PLANS = {
    "cpu": BasePlan("tiny", IMAGE),
    "claim": BasePlan("tiny", Weights(claim="models", path="qwen/8b"), namespace="team-a"),
    "revision": BasePlan("tiny", Weights(revision=3)),
    "revision on a class": BasePlan("tiny", Weights(revision=3, storage_class="fast")),
    "gpus": BasePlan(
        "qwen3-8b",
        IMAGE,
        hardware=Hardware(gpus=4, node_selector={"pool": "gpu"}, runtime_class="nvidia"),
        env_secret="hub",
        pull_secret="pull",
        priority_class="",
        attestation_secret="keys",
    ),
    "hpa": BasePlan("tiny", IMAGE, replicas=Replicas(Scaling.HPA, least=1, most=5)),
    "keda": BasePlan("tiny", IMAGE, replicas=Replicas(Scaling.KEDA, least=1, most=5)),
    "to zero": BasePlan(
        "tiny", IMAGE, replicas=Replicas(Scaling.KEDA, least=0, wake_query="sum(asked)")
    ),
    "shared cache": BasePlan("tiny", IMAGE, adapters=Adapters(Cache.CLAIM, claim="adapters")),
    "tls": BasePlan("tiny", Weights(revision=3), tls_secret="mine"),
    "cert-manager": BasePlan("tiny", IMAGE, tls_issuer="graft-ca"),
    "node cache": BasePlan("tiny", IMAGE, adapters=Adapters(Cache.NODE, size="100Gi")),
}
Graft = Callable[..., Result]
# What the restricted Pod Security standard allows.
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral",
                   "persistentVolumeClaim", "projected", "secret"}  # fmt: skip


def by_kind(plan: BasePlan) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for manifest in base_manifests(plan):
        found.setdefault(manifest["kind"], []).append(manifest)
    return found


def only(plan: BasePlan, kind: str) -> dict[str, Any]:
    (found,) = by_kind(plan)[kind]
    return found


def pod(plan: BasePlan) -> dict[str, Any]:
    spec: dict[str, Any] = only(plan, "Deployment")["spec"]["template"]["spec"]
    return spec


def main_container(plan: BasePlan) -> dict[str, Any]:
    (found,) = pod(plan)["containers"]
    return dict(found)


plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@plans
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(plan: BasePlan, version: str) -> None:
    for manifest in base_manifests(plan):
        schema = custom_schema(manifest["apiVersion"], manifest["kind"])
        if schema is not None:
            jsonschema.validate(manifest, schema)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


@plans
def test_pods_are_restricted(plan: BasePlan) -> None:
    spec = pod(plan)
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= ALLOWED_VOLUMES
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}


@plans
def test_what_is_mounted_is_there_and_what_is_written_is_writable(plan: BasePlan) -> None:
    spec = pod(plan)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    settings = only(plan, "ConfigMap")["data"]
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= set(volumes)
        assert "/tmp" in mounts
    mounts = {one["mountPath"]: one for one in main_container(plan)["volumeMounts"]}
    for variable in ("DATA_DIR", "CACHE_DIR"):
        assert not mounts[settings[f"GRAFT_INFERENCE_{variable}"]].get("readOnly")
    base = settings["GRAFT_INFERENCE_BASE"]
    if plan.weights.claim or plan.weights.revision:
        (mount,) = (one for path, one in mounts.items() if base.startswith(path))
        assert mount["readOnly"]
    used = {one["name"] for one in mounts.values()}
    assert used == set(volumes)


@plans
def test_selectors_find_its_pods_and_references_exist(plan: BasePlan) -> None:
    found = by_kind(plan)
    labels = only(plan, "Deployment")["spec"]["template"]["metadata"]["labels"]
    deployment = only(plan, "Deployment")
    selectors = [service["spec"]["selector"] for service in found["Service"]]
    selectors.append(deployment["spec"]["selector"]["matchLabels"])
    selectors.append(only(plan, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    assert all(one.items() <= labels.items() for one in selectors)
    assert all(one == selector(plan) for one in selectors)
    ports = {port["name"]: port["containerPort"] for port in main_container(plan)["ports"]}
    for service in found["Service"]:
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for container in pod(plan)["containers"]:
        (config,) = (one for one in container["envFrom"] if "configMapRef" in one)
        assert config["configMapRef"]["name"] == only(plan, "ConfigMap")["metadata"]["name"]
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in found.get(kind, ()):
            assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    for manifest in base_manifests(plan):
        assert len(manifest["metadata"]["name"]) <= 63


@plans
def test_the_service_takes_every_setting(plan: BasePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    data = only(plan, "ConfigMap")["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    known = {f"GRAFT_INFERENCE_{name.upper()}" for name in InferenceSettings.model_fields}
    assert set(data) <= known
    settings = InferenceSettings()  # type: ignore[call-arg]
    assert settings.require_production
    assert settings.base_name == plan.base
    assert settings.cache_max_bytes is not None
    assert settings.cache_max_bytes < size_bytes(plan.adapters.size)
    assert settings.tensor_parallel_size == max(1, plan.hardware.gpus)
    host, _, port = (settings.health_listen or settings.listen).rpartition(":")
    assert host == "0.0.0.0"
    assert int(port) == main_container(plan)["startupProbe"]["grpc"]["port"]


@plans
def test_probes_ask_the_services_own_names_and_a_start_has_its_time(plan: BasePlan) -> None:
    container = main_container(plan)
    asked = {
        kind: container[f"{kind}Probe"]["grpc"]["service"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert asked == {"startup": STARTUP, "readiness": READINESS, "liveness": LIVENESS}
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= plan.start_s
    deadline_s = only(plan, "Deployment")["spec"]["progressDeadlineSeconds"]
    assert deadline_s > plan.start_s


@plans
def test_its_grace_is_longer_than_the_drain_and_what_comes_before_it(plan: BasePlan) -> None:
    goodbye_s = main_container(plan)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(only(plan, "ConfigMap")["data"]["GRAFT_INFERENCE_DRAIN_TIMEOUT_S"])
    assert drain_s == plan.drain_s
    assert pod(plan)["terminationGracePeriodSeconds"] > goodbye_s + drain_s


@plans
def test_no_old_replica_ends_before_a_new_one_is_ready(plan: BasePlan) -> None:
    spec = only(plan, "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    # Whoever scales owns the number.
    assert ("replicas" in spec) == (plan.replicas.scaling is Scaling.NONE)


def test_a_base_that_may_be_switched_is_asked_for() -> None:
    def switch(plan: BasePlan) -> str:
        return str(only(plan, "ConfigMap")["data"]["GRAFT_INFERENCE_BASE_SWITCH"])

    assert switch(PLANS["cpu"]) == "off"
    assert switch(replace(PLANS["cpu"], settings={"base_switch": "registry"})) == "registry"


def test_other_settings_are_another_config_so_that_old_replicas_keep_theirs() -> None:
    plan = PLANS["cpu"]
    other = replace(plan, settings={"max_adapters": "64"})
    assert only(plan, "ConfigMap")["immutable"] is True
    names = {only(one, "ConfigMap")["metadata"]["name"] for one in (plan, other)}
    assert len(names) == 2
    assert only(other, "ConfigMap")["data"]["GRAFT_INFERENCE_MAX_ADAPTERS"] == "64"
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert only(plan, kind)["metadata"] == only(other, kind)["metadata"]


def test_another_revision_rolls_the_same_deployment_and_another_base_has_its_own() -> None:
    two, three = (BasePlan("tiny", Weights(revision=number)) for number in (2, 3))
    assert two.name == three.name
    selectors = [only(one, "Deployment")["spec"]["selector"] for one in (two, three)]
    assert selectors[0] == selectors[1]
    templates = [only(one, "Deployment")["spec"]["template"] for one in (two, three)]
    assert templates[0] != templates[1]
    assert BasePlan("tiny2", IMAGE).name != two.name


def test_a_revision_is_fetched_to_where_the_service_looks_for_it() -> None:
    plan = PLANS["revision"]
    (init,) = pod(plan)["initContainers"]
    base = only(plan, "ConfigMap")["data"]["GRAFT_INFERENCE_BASE"]
    (mount,) = (one for one in init["volumeMounts"] if base.startswith(one["mountPath"]))
    assert not mount.get("readOnly")
    assert {"name": "GRAFT_INFERENCE_BASE_REVISION", "value": "3"} in init["env"]
    assert init["command"] == ["python", "-m", "services.inference.fetch_base"]


def test_gpus_are_asked_for_with_shared_memory_and_their_nodes_are_tolerated() -> None:
    spec = pod(PLANS["gpus"])
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["image"].endswith("-gpu")
    assert pod(replace(PLANS["gpus"], image="mine:1"))["containers"][0]["image"] == "mine:1"
    (memory,) = (one for one in spec["volumes"] if one["name"] == "shared-memory")
    assert memory["emptyDir"]["medium"] == "Memory"
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert "priorityClassName" not in spec


def test_scaling_goes_by_metrics_that_the_service_exports(exported: set[str]) -> None:
    assert {QUEUE_AGE, TOKENS} <= exported
    assert REQUESTS in exported
    hpa = only(PLANS["hpa"], "HorizontalPodAutoscaler")["spec"]
    assert [one["pods"]["metric"]["name"] for one in hpa["metrics"]] == [QUEUE_AGE, TOKENS]
    keda = only(PLANS["keda"], "ScaledObject")["spec"]
    assert [one["name"] for one in keda["triggers"]] == ["queue-age", "in-flight-tokens"]
    zero = only(PLANS["to zero"], "ScaledObject")["spec"]
    assert zero["minReplicaCount"] == 0
    assert "sum(asked)" in zero["triggers"][-1]["metadata"]["query"]


def test_queries_mean_the_pods_of_this_base_and_no_others() -> None:
    (trigger, *_) = only(PLANS["keda"], "ScaledObject")["spec"]["triggers"]
    pattern = re.search(r'pod=~"([^"]+)"', trigger["metadata"]["query"])
    assert pattern is not None
    assert re.fullmatch(pattern[1], "graft-inference-tiny-6d4cf56db6-x7k2p")
    for other in ("graft-inference-tiny-b-6d4cf56db6-x7k2p", "graft-inference-tiny2-6d4-x7k2p"):
        assert re.fullmatch(pattern[1], other) is None


def test_pods_of_a_node_share_its_folder_by_a_volume_that_is_bound_to_no_node() -> None:
    plan = PLANS["node cache"]
    volume, claim = only(plan, "PersistentVolume"), only(plan, "PersistentVolumeClaim")
    assert volume["spec"]["hostPath"]["path"] == "/var/lib/graft-adapters"
    assert "nodeAffinity" not in volume["spec"]
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    (cache,) = (one for one in pod(plan)["volumes"] if one["name"] == "adapters")
    assert cache["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    # Another base's pods share it too, whatever their bound.
    other = BasePlan("other", IMAGE, adapters=Adapters(Cache.NODE, size="1Gi"))
    assert [only(other, one) for one in ("PersistentVolume", "PersistentVolumeClaim")] == [
        volume, claim,
    ]  # fmt: skip


@pytest.mark.parametrize("base", ["a" * 63, "llama-3.1_8b", "a.b", "1b"])
def test_any_base_has_a_name_of_its_own(base: str) -> None:
    plan = BasePlan(base, IMAGE)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", plan.name)
    assert len(f"{plan.name}-headless") <= 63
    assert plan.name != replace(plan, namespace="other").name
    assert BasePlan("a-b", IMAGE).name != BasePlan("a.b", IMAGE).name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": Weights()}, "where the base's weights are"),
        ({"weights": Weights(revision=1, claim="x")}, "a path or a claim as well"),
        ({"weights": Weights(claim="x", path="../y")}, r"\.\./y"),
        ({"weights": Weights(path="relative")}, "relative"),
        ({"base": "UPPER"}, "UPPER"),
        ({"replicas": Replicas(Scaling.HPA, least=0)}, "zero"),
        ({"replicas": Replicas(Scaling.KEDA, least=0)}, "nobody to say"),
        ({"replicas": Replicas(Scaling.KEDA, least=9, most=8)}, "9 to 8"),
        ({"replicas": Replicas(Scaling.HPA, queue_age_s=0)}, "queue_age_s"),
        ({"hardware": Hardware(memory="a lot")}, "memory is 'a lot'"),
        ({"adapters": Adapters(Cache.CLAIM)}, "claim"),
        ({"adapters": Adapters(claim="x")}, "claim"),
        ({"adapters": Adapters(Cache.NODE, node_path="x")}, "absolute"),
        ({"settings": {"listen": "0.0.0.0:1"}}, "listen"),
        ({"settings": {"a b": "1"}}, "a b"),
        ({"run_as": 0}, "run_as=0"),
        ({"drain_s": 0}, "drain_s=0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(GraftError, match=says) as caught:
        replace(PLANS["cpu"], **change)
    assert caught.value.next_step


def test_quantities_are_bytes() -> None:
    assert size_bytes("16Gi") == 16 * 1024**3
    assert size_bytes("1.5G") == 1_500_000_000
    assert size_bytes("10k") == 10_000
    assert size_bytes("7") == 7


RENDERED = {
    "tiny.yaml": (
        "tiny --model-path /opt/graft/examples/base --replicas 1 --cpu 1 --memory 4Gi --drain 30"
    ),
    "qwen3-8b.yaml": (
        "qwen3-8b --revision 2 --gpus 2 --cpu 8 --memory 64Gi --cache node --cache-size 100Gi "
        "--scale keda --replicas 0 --max-replicas 6 "
        "--wake-query 'sum(llm_d_epp_flow_control_queue_size)' --in-flight-tokens 200000 "
        "--set max_adapters=16 --set max_cpu_adapters=256"
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_the_examples_are_what_the_command_renders(run: Graft, name: str, tmp_path: Path) -> None:
    arguments, target = shlex.split(RENDERED[name]), tmp_path / name
    done = run("bases", "deploy", *arguments, "-o", target)
    assert done.code == 0, done.err
    hint = f"write it again: graft bases deploy {RENDERED[name]} -o deploy/k8s/bases/{name}"
    assert (EXAMPLES / name).read_text() == target.read_text(), hint
    documents = list(yaml.safe_load_all(target.read_text()))
    assert run("bases", "deploy", *arguments, "-o", "-", "--json").json() == documents
    assert run("bases", "deploy", *arguments, "-o", "-").out == target.read_text()


@pytest.mark.parametrize("kind", ["tls", "cert-manager"])
def test_an_endpoint_with_tls_has_its_certificate_in_every_container(kind: str) -> None:
    plan = PLANS[kind]
    spec = pod(plan)
    (volume,) = [one for one in spec["volumes"] if "secret" in one]
    secret = {"tls": "mine", "cert-manager": "graft-inference-tiny-tls"}[kind]
    assert volume["secret"]["secretName"] == secret
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert {"name": "tls", "mountPath": TLS_DIR, "readOnly": True} in container["volumeMounts"]
        tls = Tls.from_environ({one["name"]: one["value"] for one in container["env"]})
        assert tls is not None
        assert len(tls.files) == 3
    told = only(plan, "ConfigMap")["data"]
    assert told["GRAFT_INFERENCE_TLS_CLIENT_CA"] == f"{TLS_DIR}/ca.crt"
    container = main_container(plan)
    assert told["GRAFT_INFERENCE_HEALTH_LISTEN"] == "0.0.0.0:8433"
    assert {container[f"{one}Probe"]["grpc"]["port"] for one in ("startup", "readiness", "liveness")
            } == {8433}  # fmt: skip
    for service in by_kind(plan)["Service"]:
        assert service["spec"]["ports"][0]["appProtocol"] == "https"
    made = by_kind(plan).get("Certificate", [])
    assert [one["spec"]["secretName"] for one in made] == ([secret] if kind != "tls" else [])


def test_a_secret_and_an_issuer_are_one_too_many() -> None:
    with pytest.raises(GraftError, match="shall make one"):
        BasePlan("tiny", IMAGE, tls_secret="a", tls_issuer="b")
