"""Network policies let through the flows of the design, and nothing else within the namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import yaml

from tests.support.k8s.render import (
    ROOT,
    Installation,
    Object,
    matches,
    named,
    pod_specs,
    render,
)

DOCS = ROOT / "docs" / "kubernetes.md"
GRAFT = {"app.kubernetes.io/part-of": "graft"}
REGISTRY = {**GRAFT, "app.kubernetes.io/name": "graft-registry"}
TRAINER = {**GRAFT, "app.kubernetes.io/name": "graft-trainer"}
WORKER = {**GRAFT, "app.kubernetes.io/name": "graft-worker"}
INFERENCE = {**GRAFT, "app.kubernetes.io/name": "graft-inference", "graft.dev/base": "any"}
CLIENT = {"graft.dev/client": "true"}
STRANGER = {"app": "something-else"}


def may_reach(
    objects: list[Object], source: Mapping[str, str], target: Mapping[str, str], port: int
) -> bool:
    """Whether a pod in the namespace may call another there."""
    policies = list(named(objects, "NetworkPolicy").values())
    return _allowed(policies, "Egress", source, target, port) and _allowed(
        policies, "Ingress", target, source, port
    )


def _allowed(
    policies: list[Object], way: str, pod: Mapping[str, str], peer: Mapping[str, str], port: int
) -> bool:
    rules, peers = ("egress", "to") if way == "Egress" else ("ingress", "from")
    mine = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and matches(one["spec"]["podSelector"], pod)
    ]
    if not mine:
        return True
    return any(
        _peer(rule.get(peers), peer) and _port(rule.get("ports"), port)
        for spec in mine
        for rule in spec.get(rules, ())
    )


def _peer(allowed: list[Object] | None, peer: Mapping[str, str]) -> bool:
    if allowed is None:
        return True
    return any(
        "podSelector" in one
        and "namespaceSelector" not in one
        and matches(one["podSelector"], peer)
        for one in allowed
    )


def _port(allowed: list[Object] | None, port: int) -> bool:
    if allowed is None:
        return True
    return any(one["port"] <= port <= (one.get("endPort") or one["port"]) for one in allowed)


FLOWS = [
    (TRAINER, REGISTRY, 7431),
    (INFERENCE, REGISTRY, 7431),
    (WORKER, REGISTRY, 7431),
    (WORKER, TRAINER, 7432),
    (WORKER, WORKER, 29500),
    (WORKER, WORKER, 40123),
]
NOT_FLOWS = [
    # The registry calls nobody; trainer and inference never call each other.
    (REGISTRY, TRAINER, 7432),
    (REGISTRY, INFERENCE, 7433),
    (TRAINER, INFERENCE, 7433),
    (INFERENCE, TRAINER, 7432),
    (TRAINER, WORKER, 29500),
    (WORKER, INFERENCE, 7433),
    (INFERENCE, REGISTRY, 9431),
    (INFERENCE, INFERENCE, 7433),
    (STRANGER, REGISTRY, 7431),
    (STRANGER, INFERENCE, 7433),
    (STRANGER, INFERENCE, 7434),
]


@pytest.mark.parametrize(("source", "target", "port"), FLOWS)
def test_the_flows_of_the_design_are_open(
    objects: list[Object], source: dict[str, str], target: dict[str, str], port: int
) -> None:
    assert may_reach(objects, source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), NOT_FLOWS)
def test_all_others_are_closed(
    objects: list[Object], source: dict[str, str], target: dict[str, str], port: int
) -> None:
    assert not may_reach(objects, source, target, port)


@pytest.mark.parametrize(
    ("target", "port"), [(REGISTRY, 7431), (TRAINER, 7432), (INFERENCE, 7433), (INFERENCE, 7434)]
)
def test_whoever_has_the_label_of_clients_is_let_in(
    objects: list[Object], target: dict[str, str], port: int
) -> None:
    policies = list(named(objects, "NetworkPolicy").values())
    assert _allowed(policies, "Ingress", target, CLIENT, port)
    assert not _allowed(policies, "Ingress", target, STRANGER, port)


def test_all_pods_are_denied_by_default(objects: list[Object]) -> None:
    spec = named(objects, "NetworkPolicy")["graft-default-deny"]["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_policy_is_for_pods_that_there_can_be(objects: list[Object]) -> None:
    labels = [metadata["labels"] for _, metadata, _ in pod_specs(objects)]
    labels += [WORKER, {"graft.dev/api": "openai"}]
    for name, policy in named(objects, "NetworkPolicy").items():
        assert any(matches(policy["spec"]["podSelector"], one) for one in labels), name


@pytest.mark.parametrize("port", [443, 6443])
def test_the_trainer_reaches_the_api_server_and_the_registry_does_not(
    dev: list[Object], port: int
) -> None:
    policies = list(named(dev, "NetworkPolicy").values())
    assert _allowed(policies, "Egress", TRAINER, {}, port)
    assert _allowed(policies, "Egress", WORKER, {}, port)
    assert not _allowed(policies, "Egress", REGISTRY, {}, port)
    assert not _allowed(policies, "Egress", INFERENCE, {}, port)


def test_the_registry_reaches_its_stores_where_it_has_some(
    dev: list[Object], gpu: list[Object]
) -> None:
    for port in (5432, 443):
        assert _allowed(list(named(gpu, "NetworkPolicy").values()), "Egress", REGISTRY, {}, port)
        assert not _allowed(
            list(named(dev, "NetworkPolicy").values()), "Egress", REGISTRY, {}, port
        )


def test_everybody_may_ask_the_name_server(objects: list[Object]) -> None:
    spec = named(objects, "NetworkPolicy")["graft-dns"]["spec"]
    for pod in (REGISTRY, TRAINER, WORKER, INFERENCE):
        assert matches(spec["podSelector"], pod)
    assert {one["protocol"] for one in spec["egress"][0]["ports"]} == {"TCP", "UDP"}


STORES = (443, 9000)


def test_on_gpus_everybody_reaches_the_object_store_and_the_registry_alone_its_database(
    gpu: list[Object],
) -> None:
    policies = list(named(gpu, "NetworkPolicy").values())
    for pod in (REGISTRY, TRAINER, WORKER, INFERENCE):
        for port in STORES:
            assert _allowed(policies, "Egress", pod, {}, port), (pod, port)
        assert _allowed(policies, "Egress", pod, {}, 5432) is (pod is REGISTRY)


def test_one_patch_lets_everybody_reach_a_store_on_another_port() -> None:
    (patch,) = re.findall(
        r"```yaml\n(patches:\n.*?graft-outside.*?)```", DOCS.read_text(), re.DOTALL
    )
    for overlay, pods in (
        ("dev", (TRAINER, WORKER)),
        ("gpu", (REGISTRY, TRAINER, WORKER, INFERENCE)),
    ):
        objects = render(Installation(overlay), yaml.safe_load(patch))
        policies = list(named(objects, "NetworkPolicy").values())
        for pod in pods:
            assert _allowed(policies, "Egress", pod, {}, 8333), overlay


def test_traces_go_to_the_monitoring_namespace_and_nowhere_else(objects: list[Object]) -> None:
    spec = named(objects, "NetworkPolicy")["graft-telemetry"]["spec"]
    (rule,) = spec["egress"]
    assert [one["port"] for one in rule["ports"]] == [4317, 4318]
    labels = [one["namespaceSelector"]["matchLabels"] for one in rule["to"]]
    assert labels == [
        {"kubernetes.io/metadata.name": "monitoring"},
        {"graft.dev/telemetry": "true"},
    ]
    for pod in (REGISTRY, TRAINER, WORKER, INFERENCE):
        assert matches(spec["podSelector"], pod)


def test_the_table_of_flows_names_every_policy(dev: list[Object], gpu: list[Object]) -> None:
    told = set(re.findall(r"^\| `(graft-[a-z-]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert told == {*named(dev, "NetworkPolicy"), *named(gpu, "NetworkPolicy")}
