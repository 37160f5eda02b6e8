"""Variables in manifests are settings of the services, with values that they take."""

from __future__ import annotations

import pytest
import yaml
from graft.kubernetes.base_plan import BasePlan, Weights
from graft.kubernetes.base_template import base_manifests
from graft.kubernetes.pod_policy import PodPolicy, policies_from_dict

from services.common.config import ServiceSettings
from services.inference.config import InferenceSettings
from services.registry.config import RegistrySettings
from services.trainer.config import TrainerSettings
from tests.support.k8s.render import INSTALLATIONS, Installation, Object, named, pod_specs, render
from tests.unit.k8s.conftest import rendered
from tests.unit.k8s.test_pods import environment, is_ours

CLASSES: dict[str, type[ServiceSettings]] = {
    "registry": RegistrySettings,
    "trainer": TrainerSettings,
    "inference": InferenceSettings,
}
# What a service reads where it calls another; see graft.tls.
CLIENT = ("GRAFT_TLS_CA", "GRAFT_TLS_CERTIFICATE", "GRAFT_TLS_KEY")


def settings_class(container: Object) -> type[ServiceSettings]:
    return CLASSES[container["image"].rpartition("/")[2].partition(":")[0]]


def test_every_variable_is_a_setting_of_the_service_that_gets_it(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        for one in (*spec.get("initContainers", ()), *spec["containers"]):
            if not is_ours(one):
                continue
            chosen = settings_class(one)
            prefix = str(chosen.model_config["env_prefix"])
            for name in environment(objects, one):
                if name in CLIENT:
                    continue
                assert name.removeprefix(prefix).lower() in chosen.model_fields, f"{owner}: {name}"


def test_services_take_their_settings(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, _, spec in pod_specs(objects):
        one = spec["containers"][0]
        if not is_ours(one):
            continue
        with monkeypatch.context() as patched:
            for name, value in environment(objects, one).items():
                patched.setenv(name, value)
            settings = settings_class(one)()
        ports = {port["name"]: port["containerPort"] for port in one["ports"]}
        assert settings.listen == f"0.0.0.0:{ports['grpc']}", owner
        assert settings.metrics_listen == f"0.0.0.0:{ports['metrics']}", owner
        if isinstance(settings, InferenceSettings):
            assert settings.http_listen == f"0.0.0.0:{ports['openai']}", owner


def test_addresses_are_those_of_services_here(objects: list[Object]) -> None:
    services = named(objects, "Service")
    for owner, _, spec in pod_specs(objects):
        for name, value in environment(objects, spec["containers"][0]).items():
            if not name.endswith("_ADDRESS"):
                continue
            host, _, port = value.rpartition(":")
            assert host in services, f"{owner}: {name}"
            assert int(port) in [one["port"] for one in services[host]["spec"]["ports"]], name


def test_the_pods_of_jobs_are_made_by_a_policy_that_the_launcher_takes(
    objects: list[Object],
) -> None:
    spec = named(objects, "StatefulSet")["graft-trainer"]["spec"]["template"]["spec"]
    volume = next(one for one in spec["volumes"] if one["name"] == "pods")
    text = named(objects, "ConfigMap")[volume["configMap"]["name"]]["data"]["pods.yaml"]
    policy = policies_from_dict(yaml.safe_load(text)).default
    assert policy.service_account in named(objects, "ServiceAccount")
    assert policy.priority_class in named(objects, "PriorityClass")
    claims = named(objects, "PersistentVolumeClaim")
    for storage in (policy.work, policy.cache, policy.bases):
        assert not storage.claim or storage.claim in claims
    assert policy.run_as == spec["securityContext"]["runAsUser"], "they share claims"


def test_jobs_train_on_cpus_in_dev_and_on_gpus_elsewhere(
    dev: list[Object], gpu: list[Object]
) -> None:
    def policy(objects: list[Object]) -> PodPolicy:
        maps = [one for one in objects if one["kind"] == "ConfigMap" and "pods.yaml" in one["data"]]
        return policies_from_dict(yaml.safe_load(maps[0]["data"]["pods.yaml"])).default

    assert policy(dev).gpus_per_slot == 0
    assert policy(gpu).gpus_per_slot == 1


def test_nobody_on_the_network_switches_a_base(objects: list[Object]) -> None:
    (values,) = [
        environment(objects, spec["containers"][0])
        for _, _, spec in pod_specs(objects)
        if spec["containers"][0]["name"] == "inference"
    ]
    assert values["GRAFT_INFERENCE_BASE_SWITCH"] == "off"
    deployed = base_manifests(BasePlan("tiny", Weights(path="/models/tiny")))
    (other,) = [one["data"] for one in deployed if one["kind"] == "ConfigMap"]
    assert other["GRAFT_INFERENCE_BASE_SWITCH"] == values["GRAFT_INFERENCE_BASE_SWITCH"]


def test_the_key_that_signs_answers_is_read_where_it_is_mounted() -> None:
    objects = rendered("dev-persistent-attestation")
    spec = named(objects, "Deployment")["graft-inference-default"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    key = environment(objects, container)["GRAFT_INFERENCE_ATTESTATION_KEY"]
    made = base_manifests(BasePlan("tiny", Weights(path="/models/tiny"), attestation_secret="mine"))
    (config,) = [one["data"] for one in made if one["kind"] == "ConfigMap"]
    assert config["GRAFT_INFERENCE_ATTESTATION_KEY"] == key
    other = named(made, "Deployment")["graft-inference-tiny"]["spec"]["template"]["spec"]
    for pod, secret in ((spec, "graft-attestation"), (other, "mine")):
        (mount,) = [
            one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "attestation"
        ]
        assert (f"{mount['mountPath']}/service.key", mount["readOnly"]) == (key, True)
        (volume,) = [one for one in pod["volumes"] if one["name"] == "attestation"]
        assert volume["secret"] == {"secretName": secret, "defaultMode": 0o440}


def test_kustomize_edit_set_image_reaches_every_image_and_the_workers_too(
    dev: list[Object],
) -> None:
    names = ("registry", "trainer", "worker", "inference")
    own = {f"ghcr.io/graft-dev/{name}": f"example.com/mine/{name}:7" for name in names}
    found = render(Installation("dev", images=own))
    used = {one["image"] for _, _, spec in pod_specs(found) for one in spec["containers"]}
    trainer = named(found, "StatefulSet")["graft-trainer"]["spec"]["template"]["spec"]
    used |= {one["value"] for one in trainer["containers"][0]["env"]}
    assert used == set(own.values())
    assert len(found) == len(dev)


def test_kueue_gets_every_job_once_it_is_there() -> None:
    with_queue = [one for one in INSTALLATIONS if "kueue" in one.components]
    assert with_queue
    for installation in with_queue:
        found = render(installation)
        queues = named(found, "LocalQueue")
        trainer = named(found, "StatefulSet")["graft-trainer"]["spec"]["template"]["spec"]
        values = environment(found, trainer["containers"][0])
        assert values["GRAFT_TRAINER_KUBERNETES_QUEUE"] in queues
