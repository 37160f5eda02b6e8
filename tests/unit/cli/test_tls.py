"""The whole of Graft with TLS on both sides: `graft up`, workers, the command line, and certificates for a cluster."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from graft.authority import Authority
from graft.channel import open_channel
from graft.client import Client
from graft.tls import Pair, Tls
from prometheus_client import CollectorRegistry

from services.common.config import ServiceSettings
from services.common.server import GrpcServer
from tests.support.certificates import TestAuthority
from tests.support.health import health
from tests.support.stack import Stack, graft_up
from tests.support.trainer import stub_worker_command
from tests.unit.cli.conftest import Graft
from tests.unit.k8s.test_references import TLS as MOUNTED

SERVICES = ("REGISTRY", "TRAINER", "INFERENCE")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def client(ca: TestAuthority) -> dict[str, str]:
    """What a client's environment says."""
    own = ca.issue("client", ())
    return {
        "GRAFT_TLS_CA": str(ca.ca),
        "GRAFT_TLS_CERTIFICATE": str(own.certificate),
        "GRAFT_TLS_KEY": str(own.key),
    }


@pytest.fixture(scope="module")
def encrypted(
    ca: TestAuthority,
    client: dict[str, str],
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """`graft up`, where nobody is heard without a certificate."""
    settings = dict(client)
    for name in SERVICES:
        files = ca.issue(name.lower())
        settings |= {
            f"GRAFT_{name}_TLS_CERTIFICATE": str(files.certificate),
            f"GRAFT_{name}_TLS_KEY": str(files.key),
            f"GRAFT_{name}_TLS_CLIENT_CA": str(ca.ca),
        }
    worker = json.dumps(stub_worker_command(steps=2))
    options = ("--engine", "fake", "--base", tiny_base)
    home = tmp_path_factory.mktemp("encrypted")
    with graft_up(home, *options, GRAFT_TRAINER_WORKER_COMMAND=worker, **settings) as stack:
        yield stack


def test_services_workers_and_the_command_line_speak_tls(
    run: Graft,
    encrypted: Stack,
    client: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(encrypted.home))
    for name, value in client.items():
        monkeypatch.setenv(name, value)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    trained = run("train", rows, "--adapter", "bot", "--json")
    assert trained.code == 0, trained.err
    answered = run("generate", "tiny", "hello", "--json")
    assert answered.code == 0, answered.err
    findings = run("doctor", "--no-imports", "--json").json()["findings"]
    found = {one["name"]: one["verdict"] for one in findings}
    assert {found[name.lower()] for name in SERVICES} == {"ok"}


def test_options_say_the_same_as_the_environment_and_a_wrong_ca_is_named(
    run: Graft,
    encrypted: Stack,
    client: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(encrypted.home))
    ca, certificate, key = client.values()
    given = ("--tls-ca", ca, "--tls-certificate", certificate, "--tls-key", key)
    assert run(*given, "adapters", "list").code == 0
    other = TestAuthority(tmp_path / "other")
    refused = run("--tls-ca", other.ca, *given[2:], "adapters", "list")
    assert refused.code == 5
    assert "signed by a CA that is not trusted here" in " ".join(refused.err.split())
    halves = run("--tls-certificate", certificate, "adapters", "list")
    assert halves.code == 2
    assert "GRAFT_TLS_CA is not" in halves.err
    plain = run("doctor", "--no-imports", "--json")
    (registry,) = [one for one in plain.json()["findings"] if one["name"] == "registry"]
    assert "it speaks TLS, and this client did not" in registry["detail"]


async def test_the_sdk_takes_it_as_an_argument(encrypted: Stack, client: dict[str, str]) -> None:
    ca, certificate, key = (Path(one) for one in client.values())
    for balance in ("round_robin", "adapter"):
        async with Client(
            registry=encrypted.registry,
            inference=encrypted.inference,
            balance=balance,
            tls=Tls(ca, certificate, key),
        ) as sdk:
            assert await sdk.bases.list()
            assert (await sdk.generate("tiny", "hello")).text


def test_certificates_for_a_cluster_are_secrets_that_services_and_clients_can_use(
    run: Graft, tmp_path: Path
) -> None:
    folder = tmp_path / "pki"
    made = run("cluster", "certificates", folder, "--base", "tiny", "--host", "10.0.0.7")
    assert made.code == 0, made.err
    secrets = {one["metadata"]["name"]: one for one in _secrets(folder)}
    assert set(secrets) == MOUNTED | {"graft-inference-tiny-tls"}
    for one in secrets.values():
        kubernetes_validate.validate(one, "1.36", strict=True)
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    asyncio.run(_spoken(folder, secrets["graft-registry-tls"]))

    before = (folder / "ca.crt").read_bytes()
    assert run("cluster", "certificates", folder).code == 0
    assert (folder / "ca.crt").read_bytes() == before
    again = {one["metadata"]["name"]: one for one in _secrets(folder)}
    assert again["graft-registry-tls"]["data"] != secrets["graft-registry-tls"]["data"]
    asyncio.run(_spoken(folder, again["graft-registry-tls"]))


def test_a_folder_with_something_else_as_its_ca_is_refused(run: Graft, tmp_path: Path) -> None:
    authority = Authority.new("some", 1)
    pair: Pair = authority.issue("leaf", ["a"], 1)
    (tmp_path / "ca.crt").write_bytes(pair.certificate)
    (tmp_path / "ca.key").write_bytes(pair.key)
    refused = run("cluster", "certificates", tmp_path)
    assert refused.code == 2
    assert "not those of a CA" in refused.err


def _secrets(folder: Path) -> list[dict[str, dict[str, str]]]:
    return list(yaml.safe_load_all((folder / "secrets.yaml").read_text()))


async def _spoken(folder: Path, secret: dict[str, dict[str, str]]) -> None:
    """A service with the Secret mounted is called by the client whose files lie beside it."""
    mount = folder / "mounted"
    mount.mkdir(exist_ok=True)
    for name, data in secret["data"].items():
        (mount / name).write_bytes(base64.b64decode(data))
    settings = ServiceSettings(
        tls_certificate=mount / "tls.crt",
        tls_key=mount / "tls.key",
        tls_client_ca=mount / "ca.crt",
    )
    server = GrpcServer(settings, [], CollectorRegistry())
    await server.start()
    for name in ("graft-registry.graft.svc", "graft-registry"):
        client = Tls(folder / "ca.crt", folder / "client.crt", folder / "client.key", name)
        async with open_channel(server.address, tls=client) as channel:
            assert await health(channel)
    await server.drain()
