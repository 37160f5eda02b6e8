"""`graft bases deploy` against a cluster's API and a registry, both over the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import graft as sdk
import pytest
from graft.bases import read_base
from graft.kubernetes.apply import rollout_state

from tests.support.apply_api import ApplyApi, apply_api
from tests.support.models import make_adapter, make_base
from tests.support.registry import registry_calls, running_registry
from tests.support.stack import Result
from tests.support.waiting import eventually

Deploy = Callable[..., Awaitable[Result]]
PATH = ("--model-path", "/opt/graft/examples/base", "--no-check")
NAME = "graft-inference-tiny"


@pytest.fixture
async def api() -> AsyncIterator[ApplyApi]:
    async with apply_api() as api:
        yield api


@pytest.fixture
def kube(api: ApplyApi, tmp_path: Path) -> tuple[object, ...]:
    """Options that lead to the API."""
    return ("--kubeconfig", api.kubeconfig(tmp_path))


def ready(deployment: dict[str, Any], *, updated: int = 2, total: int = 2) -> dict[str, Any]:
    """The status that a controller gives it in the end."""
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": total,
        "updatedReplicas": updated,
        "availableReplicas": 2,
    }
    return {**deployment, "status": status}


async def test_it_applies_everything_and_again_changes_nothing(
    api: ApplyApi, kube: tuple[object, ...], deploy: Deploy
) -> None:
    first = await deploy("tiny", *PATH, *kube, "--json")
    assert first.code == 0, first.err
    said = first.json()
    assert said["address"] == f"{NAME}-headless.graft.svc:7433"
    assert {one["action"] for one in said["applied"]} == {"created"}
    kinds = [path.split("/")[-2] for path in api.applied]
    assert kinds == [
        "configmaps", "services", "services", "deployments", "poddisruptionbudgets",
    ]  # fmt: skip
    again = await deploy("tiny", *PATH, *kube, "--json")
    assert {one["action"] for one in again.json()["applied"]} == {"unchanged"}
    assert {query["force"] for query in api.queries} == {"false"}


async def test_for_people_it_says_what_became_of_each(
    kube: tuple[object, ...], deploy: Deploy
) -> None:
    said = await deploy("tiny", *PATH, *kube)
    assert f"Deployment {NAME} created" in said.out
    assert f"GRAFT_INFERENCE={NAME}-headless.graft.svc:7433" in said.out


async def test_a_dry_run_changes_nothing(
    api: ApplyApi, kube: tuple[object, ...], deploy: Deploy
) -> None:
    said = await deploy("tiny", *PATH, *kube, "--dry-run")
    assert said.code == 0
    assert f"Deployment {NAME} would be created" in said.out
    assert api.objects == {}


@pytest.mark.parametrize(
    ("plural", "status", "code", "says"),
    [
        ("deployments", 403, 1, "does not let you"),
        ("scaledobjects", 404, 1, "Install KEDA"),
        ("configmaps", 404, 1, "kubectl create namespace"),
        ("deployments", 409, 4, "--force"),
        ("deployments", 422, 2, "refuses Deployment graft-inference-tiny: said so"),
        ("services", 503, 5, "answered 503"),
    ],
)
async def test_what_the_cluster_refuses_is_said_with_what_to_do(
    api: ApplyApi,
    kube: tuple[object, ...],
    deploy: Deploy,
    plural: str,
    status: int,
    code: int,
    says: str,
) -> None:
    api.refusals[plural] = status, "said so"
    said = await deploy("tiny", *PATH, *kube, "--scale", "keda")
    assert says in said.err
    assert said.code == code


async def test_a_cluster_that_is_away_and_a_kubeconfig_that_is_none(
    deploy: Deploy, tmp_path: Path
) -> None:
    away = ApplyApi()
    away.url = "http://127.0.0.1:1"
    said = await deploy("tiny", *PATH, "--kubeconfig", away.kubeconfig(tmp_path))
    assert said.code == 5
    assert "cannot be reached" in said.err
    missing = await deploy("tiny", *PATH, "--kubeconfig", tmp_path / "nothing")
    assert missing.code == 2
    assert "The kubeconfig cannot be used" in missing.err


async def test_wrong_options_name_what_is_wrong(deploy: Deploy) -> None:
    said = await deploy("tiny", "-o", "-")
    assert said.code == 2
    assert "where the base's weights are" in said.err
    said = await deploy("tiny", *PATH, "--set", "nothing", "-o", "-", "--json")
    assert said.code == 2
    assert json.loads(said.err)["error"]["reason"] == "INVALID_REQUEST"


async def test_it_waits_until_the_new_replicas_are_ready_and_drops_configs_that_nobody_uses(
    api: ApplyApi, kube: tuple[object, ...], deploy: Deploy
) -> None:
    path = f"/apis/apps/v1/namespaces/graft/deployments/{NAME}"

    def config_of(deployment: dict[str, Any]) -> str:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        return str(container["envFrom"][-1]["configMapRef"]["name"])

    await deploy("tiny", *PATH, *kube, "--set", "max_adapters=4")
    stale = config_of(api.objects[path])
    await deploy("tiny", *PATH, *kube, "--set", "max_adapters=5")
    # The one before last can still be gone back to: its ReplicaSet is there.
    template = api.objects[path]["spec"]["template"]
    before = config_of(api.objects[path])
    metadata = {"name": "before", "labels": template["metadata"]["labels"]}
    api.put(
        "/apis/apps/v1/namespaces/graft/replicasets/before",
        {"metadata": metadata, "spec": {"template": template}},
    )
    waiting = deploy("tiny", *PATH, *kube, "--set", "max_adapters=6", "--wait")
    await eventually(lambda: len(api.applied) == 15, "the third deployment")
    api.put(path, ready(api.objects[path], updated=1, total=3))
    api.put(path, ready(api.objects[path]))
    said = await waiting
    assert said.code == 0, said.err
    assert "2 of 2 replicas are new, 2 ready, 0 old" in said.out
    assert set(api.of_kind("configmaps")) == {before, config_of(api.objects[path])}
    assert stale not in api.of_kind("configmaps")


async def test_a_rollout_that_does_not_end_says_that_the_old_go_on(
    kube: tuple[object, ...], deploy: Deploy
) -> None:
    said = await deploy("tiny", *PATH, *kube, "--wait", "--timeout", "0.1")
    assert said.code == 5
    assert "The old replicas go on" in said.err


def test_a_rollout_is_over_when_all_are_new_and_ready() -> None:
    deployment: dict[str, Any] = {"metadata": {"generation": 2}, "spec": {"replicas": 2}}
    assert not rollout_state(deployment)[0]
    deployment["status"] = {"observedGeneration": 1, "updatedReplicas": 2, "replicas": 2,
                            "availableReplicas": 2}  # fmt: skip
    assert not rollout_state(deployment)[0]
    deployment["status"]["observedGeneration"] = 2
    assert rollout_state(deployment)[0]
    deployment["status"]["replicas"] = 3
    assert not rollout_state(deployment)[0]


async def test_the_registry_says_which_aliases_will_have_to_move(
    api: ApplyApi, kube: tuple[object, ...], deploy: Deploy, tmp_path: Path, tiny_base: Path
) -> None:
    merged = make_base(tmp_path / "merged", seed=5)
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
        sdk.Client(registry=server.address) as client,
    ):
        here = ("--registry", server.address)
        absent = await deploy("tiny", "--revision", 1, *kube, before=here)
        assert absent.code == 3
        base = await calls.create_base(tiny_base)
        none = await deploy("tiny", "--revision", 1, *kube, before=here)
        assert none.code == 3
        assert "has no version 1" in none.err
        await client.base_versions.push(merged, "tiny", method="merge")
        for name in ("bot", "other"):
            await calls.create_adapter(name)
            old = make_adapter(tmp_path / f"{name}-old", tiny_base)
            version = await calls.commit(old, base.fingerprint.digest, name)
            await calls.set_alias(version.name)
        new = make_adapter(tmp_path / "new", merged)
        fingerprint = read_base(merged, "x").fingerprint.digest
        await calls.set_alias((await calls.commit(new, fingerprint, "other")).name)
        said = await deploy("tiny", "--revision", 1, *kube, before=here)
        assert said.code == 0, said.err
        assert "1 of 2 production aliases" in said.err
        assert "(bot:1)" in said.err
        assert NAME in api.of_kind("deployments")
    away = await deploy("tiny", "--revision", 1, *kube, before=("--registry", "127.0.0.1:1"))
    assert away.code == 5
    assert "--no-check" in away.err
