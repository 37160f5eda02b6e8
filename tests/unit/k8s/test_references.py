"""Whatever an object names is there, and selectors select something."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.k8s.render import Object, containers, matches, named, pod_specs

# Made by whoever installs: docs/kubernetes.md says how, and what is in them.
MADE_BY_HAND = {"gpu": {"graft-registry", "graft-worker"}, "dev": set[str]()}
TLS = {f"graft-{one}-tls" for one in ("registry", "trainer", "inference", "worker")}
PART = "app.kubernetes.io/part-of"


def test_everything_is_in_the_namespace_or_in_none(objects: list[Object]) -> None:
    apart = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
    for one in objects:
        name = f"{one['kind']}/{one['metadata']['name']}"
        assert one["metadata"].get("namespace") == (None if one["kind"] in apart else "graft"), name
        # One name is one object.
    names = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


def test_config_maps_secrets_claims_and_accounts_are_there(
    objects: list[Object], installation: object
) -> None:
    maps, claims = named(objects, "ConfigMap"), named(objects, "PersistentVolumeClaim")
    accounts = named(objects, "ServiceAccount")
    secrets = MADE_BY_HAND[str(installation.overlay)] | set(named(objects, "Secret"))  # type: ignore[attr-defined]
    secrets |= TLS if "tls" in installation.components else set()  # type: ignore[attr-defined]
    secrets |= {"graft-attestation"} if "attestation" in installation.components else set()  # type: ignore[attr-defined]
    secrets |= {one["spec"]["secretName"] for one in named(objects, "Certificate").values()}
    for owner, _, spec in pod_specs(objects):
        assert spec["serviceAccountName"] in accounts, owner
        for kind, name in _referred(spec):
            there = {"configMap": maps, "secret": secrets, "claim": claims}[kind]
            assert name in there, f"{owner}: {kind} {name}"


def _referred(spec: Object) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            yield "configMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "claim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(spec):
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                yield "configMap", source["configMapRef"]["name"]
            else:
                yield "secret", source["secretRef"]["name"]
        for variable in container.get("env", ()):
            assert "valueFrom" not in variable or "fieldRef" in variable["valueFrom"]


def test_what_is_mounted_is_a_volume_and_every_volume_is_mounted(objects: list[Object]) -> None:
    for one in objects:
        for owner, _, spec in pod_specs([one]):
            templates = one["spec"].get("volumeClaimTemplates", ())
            volumes = {
                v["name"] for v in (*spec.get("volumes", ()), *(t["metadata"] for t in templates))
            }
            mounted = {m["name"] for c in containers(spec) for m in c.get("volumeMounts", ())}
            assert mounted == volumes, owner


def test_secrets_are_never_rendered(objects: list[Object]) -> None:
    assert not named(objects, "Secret")
    for one in named(objects, "ConfigMap").values():
        for key in one.get("data", {}):
            if key.endswith("_TLS_SECRET"):
                continue  # The name of one.
            assert not any(word in key for word in ("PASSWORD", "SECRET", "ACCESS_KEY", "TOKEN"))


def test_services_reach_a_named_port_of_some_pod(objects: list[Object]) -> None:
    pods = list(pod_specs(objects))
    for name, service in named(objects, "Service").items():
        selected = [
            s
            for _, m, s in pods
            if matches({"matchLabels": service["spec"]["selector"]}, m["labels"])
        ]
        assert len(selected) == 1, name
        ports = {
            p["name"]: p["containerPort"] for c in selected[0]["containers"] for p in c["ports"]
        }
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], f"{name}: {port['name']}"


def test_workloads_select_their_own_pods_and_no_others(objects: list[Object]) -> None:
    pods = list(pod_specs(objects))
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet"):
            selected = [o for o, m, _ in pods if matches(one["spec"]["selector"], m["labels"])]
            assert selected == [f"{one['kind']}/{one['metadata']['name']}"]


def test_stateful_sets_and_scalers_name_what_is_there(objects: list[Object]) -> None:
    for one in named(objects, "StatefulSet").values():
        service = named(objects, "Service")[one["spec"]["serviceName"]]
        assert service["spec"]["clusterIP"] == "None"
    scalers = [
        *named(objects, "HorizontalPodAutoscaler").values(),
        *named(objects, "ScaledObject").values(),
    ]
    for one in scalers:
        target = named(objects, "Deployment")[one["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "whoever scales owns the number"


def test_routes_and_pools_name_what_is_there(objects: list[Object]) -> None:
    pools = named(objects, "InferencePool")
    for route in named(objects, "HTTPRoute").values():
        assert route["spec"]["rules"][0]["backendRefs"][0]["name"] in pools
    for pool in pools.values():
        picker = pool["spec"]["endpointPickerRef"]
        service = named(objects, "Service")[picker["name"]]
        assert picker["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]


def test_every_object_and_pod_says_what_it_is(objects: list[Object]) -> None:
    for one in objects:
        if one["kind"] not in ("ServiceAccount", "Namespace", "PriorityClass", "ConfigMap"):
            labels = one["metadata"].get("labels", {})
            cluster = one["kind"] in (
                "ResourceFlavor",
                "ClusterQueue",
                "LocalQueue",
                "Role",
                "RoleBinding",
            )
            assert cluster or labels.get(PART) == "graft", one["metadata"]["name"]
    for owner, metadata, _ in pod_specs(objects):
        assert metadata["labels"][PART] == "graft", owner
        assert {"app.kubernetes.io/name", "app.kubernetes.io/component"} <= set(
            metadata["labels"]
        ), owner


def test_prometheus_finds_a_metrics_port_of_every_service_once(objects: list[Object]) -> None:
    monitors = named(objects, "ServiceMonitor")
    for monitor in monitors.values():
        chosen = [
            one["spec"]["selector"]["app.kubernetes.io/name"]
            for one in named(objects, "Service").values()
            if matches(monitor["spec"]["selector"], one["metadata"]["labels"])
            and any(port["name"] == "metrics" for port in one["spec"]["ports"])
        ]
        assert sorted(chosen) == ["graft-inference", "graft-registry", "graft-trainer"]
