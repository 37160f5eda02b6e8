"""Connections: who hangs up, who reads slowly, who comes while the service starts or stops, and who has no key."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from graft.errors import GraftError, Reason

from services.inference.config import InferenceSettings
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from services.inference.server import InferenceServer
from tests.support.certificates import TestAuthority
from tests.support.inference import FINGERPRINT, RunningInference, start_inference
from tests.support.waiting import eventually
from tests.unit.inference.http.conftest import client_of

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9}


@pytest.mark.parametrize("stream", [True, False])
async def test_who_hangs_up_frees_his_place_at_once(
    service: RunningInference, client: openai.AsyncOpenAI, stream: bool
) -> None:
    (version,) = await service.publish("bot", "one")
    service.fake.hold(3)
    asked = asyncio.ensure_future(_read(client, model="bot", stream=stream))
    await eventually(lambda: service.fake.unfinished() == 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await eventually(lambda: service.fake.unfinished() == 0)
    assert service.server.residency is not None
    (resident,) = service.server.residency.instances()
    assert resident.version.name == version.name
    await eventually(lambda: resident.in_flight == 0)
    value = service.server.metrics_registry.get_sample_value
    labels = {"route": "/v1/chat/completions", "code": "499"}
    await eventually(lambda: value("graft_http_requests_total", labels) == 1)


async def _read(client: openai.AsyncOpenAI, **options: object) -> None:
    answer = await client.post(
        "/chat/completions", body={**CHAT, **options}, cast_to=object, stream=False
    )
    assert answer is None


async def test_who_hangs_up_in_the_middle_of_a_stream_frees_his_place(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    service.fake.hold(3)
    stream = await client.completions.create(model="tiny", prompt="x", max_tokens=9, stream=True)
    async for part in stream:
        if part.choices[0].text:
            break
    await stream.close()
    await eventually(lambda: service.fake.unfinished() == 0)


async def test_a_reader_that_takes_nothing_gives_its_place_to_others(tmp_path: Path) -> None:
    engine = FakeEngine(max_context_tokens=60_000)
    async with start_inference(
        tmp_path, engine=engine, max_in_flight=1, stalled_after_s=0.2
    ) as service:
        host, _, port = service.server.http_address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = b'{"model": "tiny", "prompt": "x", "max_tokens": 50000, "stream": true}'
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        try:
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            async with client_of(service) as client:
                answer = await client.completions.create(model="tiny", prompt="y", max_tokens=4)
            assert len(answer.choices[0].text) == 4
            assert engine.unfinished() == 1, "the slow reader's answer goes on at its own pace"
        finally:
            writer.close()
        await eventually(lambda: engine.unfinished() == 0)


async def test_a_deadline_of_the_client_ends_the_answer(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    service.fake.hold(3)
    late = {"x-request-timeout": "0.05"}
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**CHAT, extra_headers=late)  # type: ignore[call-overload]
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    stream = await _begun_before_its_deadline(client)
    with pytest.raises(openai.APIError, match="took longer"):
        async for _ in stream:
            pass
    await eventually(lambda: service.fake.unfinished() == 0)
    for wrong in ("soon", "-1", "nan", "inf"):
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(  # type: ignore[call-overload]
                **CHAT, extra_headers={"x-request-timeout": wrong}
            )


async def _begun_before_its_deadline(client: openai.AsyncOpenAI) -> openai.AsyncStream[Any]:
    """A stream that its deadline ends in the middle; with more time where it ended before the first token."""
    timeout_s = 0.05
    while True:
        try:
            return await client.completions.create(
                model="tiny", prompt="x", max_tokens=9, stream=True,
                extra_headers={"x-request-timeout": str(timeout_s)},
            )  # fmt: skip
        except openai.APIStatusError as error:
            if error.code != "deadline_exceeded":
                raise
            timeout_s *= 4


async def test_a_body_that_is_too_large_is_refused_and_the_service_goes_on(tmp_path: Path) -> None:
    async with (
        start_inference(tmp_path, http_max_body_bytes=4096) as service,
        client_of(service) as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(model="tiny", prompt="x" * 100_000)
        assert caught.value.status_code == 413
        assert caught.value.code == "too_large"
        assert await client.completions.create(model="tiny", prompt="x", max_tokens=1)


async def test_while_it_starts_it_says_so(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.start_gate.clear()
    server = InferenceServer(
        InferenceSettings(base=Path("tiny"), base_name="tiny", data_dir=tmp_path),
        engine=engine,
        registry=MemoryRegistry(FINGERPRINT),
    )
    starting = asyncio.ensure_future(server.start())
    await eventually(lambda: bool(server.http_address))
    async with aiohttp.ClientSession(server.http_address) as session:
        assert await status(session, "/health") == 200
        assert await status(session, "/ready") == 503
        async with session.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            assert (await answer.json())["error"]["type"] == "server_error"
        engine.start_gate.set()
        await starting
        assert await status(session, "/ready") == 200
        engine.start_gate.clear()
        engine.die()
        await eventually(lambda: answers(session, "/ready", 503))
        assert await status(session, "/health") == 200
        engine.start_gate.set()
        await eventually(lambda: answers(session, "/ready", 200))
    await server.stop()


async def status(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as answer:
        return answer.status


async def answers(session: aiohttp.ClientSession, path: str, wanted: int) -> bool:
    return await status(session, path) == wanted


async def test_at_its_end_streams_go_on_and_nothing_new_begins(tmp_path: Path) -> None:
    async with start_inference(tmp_path) as service, client_of(service) as client:
        service.fake.hold(3)
        stream = await client.completions.create(
            model="tiny", prompt="x", max_tokens=9, stream=True
        )
        async with aiohttp.ClientSession(service.server.http_address) as session:
            assert await status(session, "/v1/models") == 200
            stopping = asyncio.ensure_future(service.server.stop())
            await eventually(lambda: not service.server.grpc.says("readiness"))
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()
            await service.fake.release()
            parts = [part async for part in stream]
        assert sum(len(part.choices[0].text) for part in parts) == 9
        assert parts[-1].choices[0].finish_reason == "length"
        await stopping


async def test_what_does_not_end_within_the_drain_is_cut_off(tmp_path: Path) -> None:
    async with (
        start_inference(tmp_path, drain_timeout_s=0.1) as service,
        client_of(service) as client,
    ):
        service.fake.hold(3)
        stream = await client.completions.create(
            model="tiny", prompt="x", max_tokens=9, stream=True
        )
        async with asyncio.timeout(60):
            await service.server.stop()
        with pytest.raises((openai.APIError, Exception)):
            async for _ in stream:
                pass
        assert service.fake.unfinished() == 0


async def test_with_keys_nobody_asks_without_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for tests\n\nsk-plain\nshop sk-shop\n")
    async with start_inference(tmp_path, http_api_keys=keys) as service:
        for key in ("sk-plain", "sk-shop"):
            async with client_of(service, api_key=key) as client:
                assert (await client.models.list()).data
        for wrong in ("sk-other", "shop", "sk-shop2", "Bearer"):
            async with client_of(service, api_key=wrong) as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    await client.models.list()
                assert caught.value.code == "invalid_api_key"
        async with aiohttp.ClientSession(service.server.http_address) as session:
            assert await status(session, "/v1/models") == 401
            assert await status(session, "/nothing") == 401
            assert await status(session, "/ready") == 200
        keys.write_text("sk-new\n")
        async with client_of(service, api_key="sk-new") as client:
            assert (await client.models.list()).data
        async with client_of(service, api_key="sk-plain") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()


@pytest.mark.parametrize("content", ["", "# nothing\n", "a b c\n"])
async def test_a_file_without_good_keys_is_refused_at_the_start(
    tmp_path: Path, content: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(content)
    with pytest.raises(GraftError, match="keys") as caught:
        async with start_inference(tmp_path, http_api_keys=keys):
            pass
    assert caught.value.reason is Reason.INVALID_REQUEST


async def test_tls_is_that_of_the_service_and_renewed_without_a_restart(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path / "ca")
    mine, client_files = authority.issue("service"), authority.issue("client", ())
    settings: dict[str, Any] = {
        "tls_certificate": mine.certificate,
        "tls_key": mine.key,
        "tls_client_ca": authority.ca,
    }
    trusting = ssl.create_default_context(cafile=str(authority.ca))
    showing = ssl.create_default_context(cafile=str(authority.ca))
    showing.load_cert_chain(client_files.certificate, client_files.key)

    async def serial(url: str, context: ssl.SSLContext) -> str:
        """Of the certificate that is shown, by a server that answers."""
        host, _, port = url.removeprefix("https://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            return str(writer.get_extra_info("peercert")["serialNumber"])
        finally:
            writer.close()

    async with start_inference(tmp_path, **settings) as service:
        url = service.server.http_address
        assert url.startswith("https://")
        first = await serial(url, showing)
        with pytest.raises((OSError, AssertionError)):
            await serial(url, trusting)
        authority.issue("service")
        assert await serial(url, showing) != first
        with pytest.raises((OSError, AssertionError)):
            await serial(url, trusting)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(url.replace("https", "http"))


async def test_a_service_may_have_no_door(tmp_path: Path) -> None:
    async with start_inference(tmp_path, http_listen="") as service:
        assert service.server.http_address == ""
        assert (await service.ask("tiny")).text


async def test_a_port_that_is_taken_is_named(tmp_path: Path, service: RunningInference) -> None:
    taken = service.server.http_address.removeprefix("http://")
    with pytest.raises(GraftError, match=taken) as caught:
        async with start_inference(tmp_path / "second", http_listen=taken):
            pass
    assert caught.value.reason is Reason.UNAVAILABLE


async def test_a_connection_is_kept_and_requests_are_counted_by_route(
    service: RunningInference,
) -> None:
    host, _, port = service.server.http_address.removeprefix("http://").rpartition(":")
    body = json.dumps(CHAT).encode()
    chat = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(3):
        writer.write(chat + body)
        status_line, headers = await head(reader)
        assert status_line == "HTTP/1.1 200 OK"
        assert headers["x-request-id"]
        await reader.readexactly(int(headers["content-length"]))
    writer.write(b"GET /v1/models/nobody HTTP/1.1\r\nHost: x\r\nx-request-id: mine\r\n\r\n")
    status_line, headers = await head(reader)
    assert status_line == "HTTP/1.1 404 Not Found"
    assert headers["x-request-id"] == "mine"
    writer.close()
    value = service.server.metrics_registry.get_sample_value

    def count(route: str, code: str) -> float | None:
        return value("graft_http_requests_total", {"route": route, "code": code})

    assert count("/v1/chat/completions", "200") == 3
    assert count("/v1/models/{model}", "404") == 1


async def head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return status_line, {name.lower(): value for name, _, value in pairs}
