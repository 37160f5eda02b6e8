"""Services with TLS: who is heard, what a wrong certificate says, and renewal while calls run."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from graft.channel import open_channel, rpc_errors
from graft.connection import Connection
from graft.endpoints import Endpoints
from graft.errors import GraftError, Reason
from graft.handshakes import ask_again
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import (
    BlobServiceStub,
    add_BlobServiceServicer_to_server,
)
from graft.registry.v1.registry_service_pb2 import GetAdapterRequest
from graft.replicas import Replica, Replicas
from graft.tls import Tls
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.common.config import ServiceSettings
from services.common.server import GrpcServer
from services.common.tls import certificates_of
from tests.support.certificates import Files, TestAuthority
from tests.support.health import health, probes
from tests.support.waiting import eventually
from tests.unit.ground.test_server import SERVICE, Servicer


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("other"), "other-ca")


@asynccontextmanager
async def serving(
    files: Files | None, client_ca: Path | None = None, **more: Any
) -> AsyncIterator[tuple[GrpcServer, Servicer]]:
    settings = ServiceSettings(
        tls_certificate=files.certificate if files else None,
        tls_key=files.key if files else None,
        tls_client_ca=client_ca,
        **more,
    )
    server, servicer = GrpcServer(settings, [SERVICE], CollectorRegistry()), Servicer()
    add_BlobServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    try:
        yield server, servicer
    finally:
        servicer.go_on.set()
        await server.drain()


def connection(address: str, tls: Tls | None) -> Connection:
    return Connection(Endpoints(address, address, address), 60.0, 0.0, None, tls)


async def refusal(address: str, tls: Tls | None) -> GraftError:
    """What a client of the SDK is told."""
    client = connection(address, tls)
    try:
        with pytest.raises(GraftError) as told:
            await client.call(
                client.registry.GetAdapter, GetAdapterRequest(name="x"), "the registry"
            )
    finally:
        await client.close()
    return told.value


async def test_a_client_that_trusts_the_ca_is_answered_and_what_it_says_is_encrypted(
    ca: TestAuthority,
) -> None:
    async with serving(ca.issue("registry")) as (server, _):
        async with open_channel(server.address, tls=ca.client()) as channel:
            answer = await BlobServiceStub(channel).FindMissing(
                pb.FindMissingRequest(digests=["a"])
            )
            assert answer.missing == ["a"]
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert await reader.read(1) in (b"", b"\x15"), "an alert, or nothing: no plaintext"
        writer.close()


async def test_the_environment_says_it_once_for_every_address(
    ca: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_TLS_CA", str(ca.ca))
    async with serving(ca.issue("registry")) as (server, _):
        async with open_channel(server.address) as channel:
            assert await health(channel)
        replica = await Replicas(f"localhost:{server.address.rpartition(':')[2]}").current()
        for one in replica.values():
            await one.close()


async def test_a_replica_is_known_by_the_name_that_was_looked_up(ca: TestAuthority) -> None:
    """Its certificate does not name the address."""
    async with serving(ca.issue("replica", ("inference.test",))) as (server, _):

        async def resolve(target: str) -> list[str]:
            return [server.address]

        replicas = Replicas("inference.test:1", resolve, tls=ca.client())
        (replica,) = (await replicas.current()).values()
        await replica.reach()
        await replicas.close()
        stranger = Replica(server.address, ca.client())
        with pytest.raises(GraftError, match="certificate is for another name"):
            await stranger.reach()
        await stranger.close()


async def test_what_is_wrong_with_a_services_certificate_is_said_with_its_address(
    ca: TestAuthority, other_ca: TestAuthority
) -> None:
    async with (
        serving(ca.issue("good")) as (good, _),
        serving(ca.issue("named", ("registry.example.com",))) as (named, _),
        serving(None) as (plain, _),
        expired(ca) as late,
    ):
        cases = [
            (late, ca.client(), "its certificate has expired", "Renew the service's certificate"),
            (named.address, ca.client(), "is for another name", "GRAFT_TLS_SERVER_NAME"),
            (
                good.address,
                other_ca.client(),
                "signed by a CA that is not trusted here",
                "--tls-ca",
            ),
            (plain.address, ca.client(), "it does not speak TLS", "Unset GRAFT_TLS_CA"),
            (good.address, None, "it speaks TLS, and this client did not", "GRAFT_TLS_CA"),
        ]
        errors = await asyncio.gather(*(refusal(address, tls) for address, tls, _, _ in cases))
    for error, (address, _, message, next_step) in zip(errors, cases, strict=True):
        assert error.reason is Reason.UNAVAILABLE, message
        assert message in error.message
        assert address in error.message
        assert next_step in error.next_step


@asynccontextmanager
async def expired(ca: TestAuthority) -> AsyncIterator[str]:
    """A service that lives longer than its certificate; ours would not have begun with it."""
    files = ca.issue("late", expired=True)
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_who_shows_no_good_certificate_is_told_what_the_service_wants(
    ca: TestAuthority, other_ca: TestAuthority
) -> None:
    theirs = other_ca.issue("intruder")
    cases = [
        (ca.client(), "it wants a client certificate, and none was shown"),
        (
            Tls(ca.ca, theirs.certificate, theirs.key),
            f"the client certificate {theirs.certificate} is signed by a CA that it does not trust",
        ),
        (None, "it speaks TLS, and this client did not"),
    ]
    async with serving(ca.issue("registry"), ca.ca) as (server, _):
        errors = await asyncio.gather(*(refusal(server.address, tls) for tls, _ in cases))
        for error, (_, message) in zip(errors, cases, strict=True):
            assert error.message == f"the registry at {server.address} cannot be reached: {message}"
            assert "GRAFT_TLS_C" in error.next_step
        async with open_channel(server.address, tls=ca.client(ca.issue("me"))) as channel:
            assert await health(channel), "others are answered as ever"


async def test_an_expired_certificate_of_a_client_is_found_before_it_is_shown(
    ca: TestAuthority,
) -> None:
    late = ca.issue("late-client", expired=True)
    with pytest.raises(GraftError, match=r"late-client.crt expired at .* UTC") as told:
        open_channel("127.0.0.1:1", tls=ca.client(late))
    assert told.value.reason is Reason.INVALID_REQUEST


async def test_a_certificate_that_expires_while_a_client_lives_is_named(ca: TestAuthority) -> None:
    late = ca.issue("late-client", expired=True)
    async with serving(ca.issue("registry"), ca.ca) as (server, _):
        trouble = await ask_again(server.address, ca.client(late))
    assert trouble is not None
    assert trouble.what == f"the client certificate {late.certificate} has expired"


async def test_a_service_that_is_just_not_there_is_no_matter_of_certificates(
    ca: TestAuthority,
) -> None:
    error = await refusal("127.0.0.1:1", ca.client())
    assert "TLS" not in str(error)
    assert "graft up" in error.next_step


async def test_streams_go_on_while_certificates_are_renewed_and_new_calls_use_the_new(
    tmp_path: Path,
) -> None:
    old, new = TestAuthority(tmp_path, "old"), TestAuthority(tmp_path / "new", "new")
    server_files, client_files = old.issue("server"), old.issue("client")
    tls = old.client(client_files)
    async with (
        serving(server_files, old.ca) as (server, servicer),
        open_channel(server.address, tls=tls) as channel,
    ):
        stub = BlobServiceStub(channel)
        stream = stub.Read(pb.ReadRequest(digest="x"))
        assert (await anext(aiter(stream))).data == b"a"
        # The whole installation gets another CA, one file after the other.
        both = old.ca.read_bytes() + new.ca.read_bytes()
        old.ca.write_bytes(both)
        for name in ("server", "client"):
            old.write(name, new.authority.issue(name, ("127.0.0.1",), 1))
        assert (await stub.FindMissing(pb.FindMissingRequest(digests=["b"]))).missing == ["b"]
        async with open_channel(server.address, tls=Tls(new.ca, *_of(client_files))) as other:
            assert await health(other), "only the new CA is trusted by this one"
        servicer.go_on.set()
        assert [one.data async for one in stream] == [b"b"]
        # The channel that was left is closed; calls go on.
        assert (await stub.FindMissing(pb.FindMissingRequest(digests=["c"]))).missing == ["c"]


def _of(files: Files) -> tuple[Path, Path]:
    return files.certificate, files.key


async def test_a_renewal_that_is_half_written_changes_nothing_until_it_is_whole(
    tmp_path: Path,
) -> None:
    ca = TestAuthority(tmp_path)
    files = ca.issue("server")
    fresh = ca.authority.issue("server", ("127.0.0.1", "fresh.test"), 1)
    named = Tls(ca.ca, server_name="fresh.test")
    async with serving(files) as (server, _):
        files.certificate.write_bytes(fresh.certificate)
        async with open_channel(server.address, tls=ca.client()) as channel:
            assert await health(channel), "the key is still the old one: the old pair stays"
        files.key.write_bytes(fresh.key)
        async with open_channel(server.address, tls=named) as channel:
            assert await health(channel)


async def test_a_channel_that_is_open_shows_and_trusts_what_is_in_the_files_now(
    tmp_path: Path,
) -> None:
    old, new = TestAuthority(tmp_path, "old"), TestAuthority(tmp_path / "new", "new")
    own = old.issue("client")
    async with serving(old.issue("server"), old.ca) as (server, _):
        address = server.address
        channel = open_channel(address, tls=old.client(own))
        assert await health(channel)
    fresh = new.authority.issue("client", (), 1)
    async with serving(new.issue("server"), new.ca, listen=address), channel:
        # Half of it: neither an error of the client's own nor a certificate with another's key.
        own.key.write_bytes(fresh.key)
        with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
            await health(channel)
        own.certificate.write_bytes(fresh.certificate)
        old.ca.write_bytes(new.ca.read_bytes())
        assert await health(channel)


async def test_a_client_in_flight_is_cancelled_only_by_closing_its_channel(
    ca: TestAuthority,
) -> None:
    async with serving(ca.issue("server")) as (server, _):
        channel = open_channel(server.address, tls=ca.client())
        stream = BlobServiceStub(channel).Read(pb.ReadRequest(digest="x"))
        await anext(aiter(stream))
        await channel.close(None)
        assert stream.cancelled()


async def test_probes_are_answered_without_tls_and_nothing_else_is(
    ca: TestAuthority, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    async with serving(
        ca.issue("registry"), ca.ca, health_listen="127.0.0.1:0", ready_file=ready
    ) as (server, _):
        address = json.loads(ready.read_text())["health_address"]
        assert address == server.health_address
        async with open_channel(address) as channel:
            assert await probes(channel) == (True, True, True)
            with pytest.raises(GraftError) as told, rpc_errors("the registry"):
                await BlobServiceStub(channel).FindMissing(pb.FindMissingRequest())
            assert "UNIMPLEMENTED" in told.value.message
            await server.refuse()
            assert await probes(channel) == (True, False, True)


async def test_metrics_say_when_the_certificate_expires(ca: TestAuthority) -> None:
    async with serving(ca.issue("registry")) as (server, _):
        url = f"http://{server.metrics_address}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    (line,) = [one for one in text.splitlines() if one.startswith("graft_tls_certificate_expiry_")]
    left_s = float(line.split()[1]) - datetime.now(UTC).timestamp()
    assert 23 * 3600 < left_s < 24 * 3600


def test_files_that_cannot_be_used_are_named_with_what_is_wrong(
    ca: TestAuthority, other_ca: TestAuthority, tmp_path: Path
) -> None:
    good, other = ca.issue("good"), other_ca.issue("other")
    text = tmp_path / "text.pem"
    text.write_text("not PEM")
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    late = ca.issue("late", expired=True)
    missing = tmp_path / "nowhere.crt"
    cases = [
        (good.certificate, other.key, None, f"{other.key} is not the key of the certificate"),
        (missing, good.key, None, f"{missing} cannot be read (No such file or directory)"),
        (text, good.key, None, f"{text} holds no certificate in PEM"),
        (good.certificate, text, None, f"{text} holds no private key in PEM"),
        (good.certificate, locked, None, f"{locked} is encrypted"),
        (late.certificate, late.key, None, f"{late.certificate} expired at"),
        (good.certificate, good.key, text, f"{text} holds no CA certificate in PEM"),
        (good.certificate, good.key, missing, f"{missing} cannot be read"),
    ]
    for certificate, key, client_ca, message in cases:
        settings = ServiceSettings(
            tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca
        )
        with pytest.raises(GraftError) as told:
            certificates_of(settings)
        assert message in told.value.message
        assert told.value.next_step


def test_settings_that_are_half_given_are_refused(ca: TestAuthority) -> None:
    with pytest.raises(ValidationError, match="set both, or neither"):
        ServiceSettings(tls_certificate=ca.ca)
    with pytest.raises(ValidationError, match="tls_certificate is not set"):
        ServiceSettings(tls_client_ca=ca.ca)
    for environ, message in (
        ({"GRAFT_TLS_KEY": "k"}, "GRAFT_TLS_KEY is set, and GRAFT_TLS_CA is not"),
        ({"GRAFT_TLS_CA": "a", "GRAFT_TLS_KEY": "k"}, "GRAFT_TLS_CERTIFICATE is not"),
    ):
        with pytest.raises(GraftError, match=message):
            Tls.from_environ(environ)
    assert Tls.from_environ({}) is None
    assert Tls.from_environ({"GRAFT_TLS_CA": "system"}) == Tls()


async def test_no_call_is_lost_while_both_sides_are_renewed_again_and_again(
    tmp_path: Path,
) -> None:
    ca = TestAuthority(tmp_path)
    own = ca.issue("client")
    async with (
        serving(ca.issue("server"), ca.ca, max_connection_age_s=0.2) as (server, _),
        open_channel(server.address, tls=ca.client(own)) as channel,
    ):
        stub, answers, enough = BlobServiceStub(channel), 0, asyncio.Event()

        async def ask() -> None:
            nonlocal answers
            while not enough.is_set():
                await stub.FindMissing(pb.FindMissingRequest(digests=["a"]), timeout=60)
                answers += 1

        async def answered(more: int) -> None:
            wanted = answers + more
            await eventually(lambda: answers >= wanted, f"{more} more answers")

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            for _ in range(12):
                ca.issue("client")
                ca.issue("server")
                await answered(8)
            enough.set()
