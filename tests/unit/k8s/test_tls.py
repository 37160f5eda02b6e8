"""TLS in manifests: what is mounted is what is read, certificates have the names that are called, workers get theirs."""

from __future__ import annotations

import pytest
from graft.kubernetes.pod_tls import TLS_DIR, certificate, service_names
from graft.tls import Tls

from services.registry.config import RegistrySettings
from tests.support.k8s.render import Object, named, pod_specs
from tests.unit.k8s.conftest import rendered
from tests.unit.k8s.test_pods import environment, is_ours

PORTS = {"registry": 8431, "trainer": 8432, "inference": 8433}


@pytest.fixture(params=["dev-tls", "gpu-cert-manager"])
def encrypted(request: pytest.FixtureRequest) -> list[Object]:
    """Each installation with TLS."""
    return rendered(request.param)


@pytest.fixture
def managed() -> list[Object]:
    """The one with cert-manager."""
    return rendered("gpu-cert-manager")


def ours(objects: list[Object]) -> dict[str, tuple[Object, Object]]:
    """Pod and container of each service."""
    return {
        spec["containers"][0]["name"]: (spec, spec["containers"][0])
        for _, _, spec in pod_specs(objects)
        if is_ours(spec["containers"][0])
    }


def test_every_service_reads_the_files_that_are_mounted_and_renewed(
    encrypted: list[Object],
) -> None:
    pods = ours(encrypted)
    assert set(pods) == set(PORTS)
    for name, (spec, container) in pods.items():
        values = environment(encrypted, container)
        prefix = f"GRAFT_{name.upper()}_TLS_"
        read = [values[prefix + one] for one in ("CERTIFICATE", "KEY", "CLIENT_CA")]
        assert read == [f"{TLS_DIR}/{one}" for one in ("tls.crt", "tls.key", "ca.crt")]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == TLS_DIR]
        assert mount["readOnly"]
        assert "subPath" not in mount, "it would never change"
        (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
        assert volume["secret"]["secretName"] == f"graft-{name}-tls"
        assert volume["secret"]["defaultMode"] == 0o440


def test_who_calls_another_shows_its_own_certificate(encrypted: list[Object]) -> None:
    for name, (_, container) in ours(encrypted).items():
        tls = Tls.from_environ(environment(encrypted, container))
        if name == "registry":
            assert tls is None, "it calls nobody"
        else:
            assert tls is not None
            assert {str(one.parent) for one in tls.files} == {TLS_DIR}
            assert len(tls.files) == 3


def test_probes_ask_at_a_port_without_tls_that_no_service_offers(encrypted: list[Object]) -> None:
    for name, (_, container) in ours(encrypted).items():
        values = environment(encrypted, container)
        assert values[f"GRAFT_{name.upper()}_HEALTH_LISTEN"] == f"0.0.0.0:{PORTS[name]}"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"]["port"] == PORTS[name]
    for service in named(encrypted, "Service").values():
        for port in service["spec"]["ports"]:
            assert port["port"] not in PORTS.values()
            assert port["name"] != "grpc" or port["appProtocol"] == "https"


def test_workers_get_their_own(encrypted: list[Object]) -> None:
    values = environment(encrypted, ours(encrypted)["trainer"][1])
    assert values["GRAFT_TRAINER_KUBERNETES_TLS_SECRET"] == "graft-worker-tls"


def test_certificates_have_every_name_under_which_a_service_is_called(
    managed: list[Object],
) -> None:
    certificates = named(managed, "Certificate")
    issuers = named(managed, "Issuer")
    for one in certificates.values():
        assert one["spec"]["issuerRef"]["name"] in issuers
    for name, service in named(managed, "Service").items():
        kind = service["spec"]["selector"]["app.kubernetes.io/name"]
        assert name in certificates[f"{kind}-tls"]["spec"]["dnsNames"]
    for name, called in (
        ("registry", "graft-registry"),
        ("trainer", "graft-trainer"),
        ("inference", "graft-inference-default"),
    ):
        spec = certificates[f"graft-{name}-tls"]["spec"]
        # What `graft bases deploy` writes for any other base.
        made = certificate(f"graft-{name}-tls", "graft", {}, called, "graft-ca")["spec"]
        assert sorted(spec["dnsNames"]) == sorted({*service_names(called, "graft")})
        for field in ("secretName", "usages", "ipAddresses", "privateKey", "issuerRef"):
            assert spec[field] == made[field]
    for name in ("graft-worker-tls", "graft-client-tls"):
        assert "server auth" not in certificates[name]["spec"]["usages"]


def test_no_pod_has_the_key_of_the_authority(managed: list[Object]) -> None:
    secret = named(managed, "Certificate")["graft-ca"]["spec"]["secretName"]
    assert named(managed, "Issuer")["graft-ca"]["spec"]["ca"]["secretName"] == secret
    for owner, _, spec in pod_specs(managed):
        mounted = [v["secret"]["secretName"] for v in spec.get("volumes", ()) if "secret" in v]
        assert secret not in mounted, owner


def test_clients_without_certificates_are_let_in_by_setting_the_client_ca_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TLS_CLIENT_CA", "HEALTH_LISTEN"):
        monkeypatch.setenv(f"GRAFT_REGISTRY_{name}", "")
    settings = RegistrySettings()
    assert settings.tls_client_ca is None
    assert settings.health_listen is None
