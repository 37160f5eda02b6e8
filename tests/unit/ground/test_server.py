"""What every service's server does: health, errors with their reason, metrics, and a drain."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from graft.channel import call_metadata, open_channel, rpc_errors
from graft.errors import GraftError, Reason
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import (
    BlobServiceServicer,
    BlobServiceStub,
    add_BlobServiceServicer_to_server,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.config import ServiceSettings
from services.common.interceptors import Context
from services.common.server import GrpcServer
from tests.support.health import probes

SERVICE = pb.DESCRIPTOR.services_by_name["BlobService"].full_name


class Servicer(BlobServiceServicer):
    """Answers, refuses, fails and streams, as the test wants it."""

    def __init__(self) -> None:
        self.streaming = asyncio.Event()
        self.go_on = asyncio.Event()

    async def FindMissing(
        self, request: pb.FindMissingRequest, context: Context
    ) -> pb.FindMissingResponse:
        if "refuse" in request.digests:
            raise GraftError(Reason.BLOB_NOT_FOUND, "no blob", next_step="Upload it.", digest="x")
        if "fail" in request.digests:
            raise RuntimeError("boom")
        return pb.FindMissingResponse(missing=request.digests)

    async def Write(
        self, request_iterator: AsyncIterator[pb.WriteRequest], context: Context
    ) -> pb.WriteResponse:
        return pb.WriteResponse()

    async def QueryWriteStatus(
        self, request: pb.QueryWriteStatusRequest, context: Context
    ) -> pb.QueryWriteStatusResponse:
        return pb.QueryWriteStatusResponse()

    async def Read(
        self, request: pb.ReadRequest, context: Context
    ) -> AsyncIterator[pb.ReadResponse]:
        yield pb.ReadResponse(data=b"a")
        self.streaming.set()
        await self.go_on.wait()
        yield pb.ReadResponse(data=b"b")

    async def SignUpload(
        self, request: pb.SignUploadRequest, context: Context
    ) -> pb.SignUploadResponse:
        raise AssertionError("not called")

    async def FinishUpload(
        self, request: pb.FinishUploadRequest, context: Context
    ) -> pb.FinishUploadResponse:
        raise AssertionError("not called")

    async def SignDownload(
        self, request: pb.SignDownloadRequest, context: Context
    ) -> pb.SignDownloadResponse:
        raise AssertionError("not called")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[GrpcServer, Servicer]]:
    settings = ServiceSettings(ready_file=tmp_path / "ready.json", drain_timeout_s=20)
    server = GrpcServer(settings, [SERVICE], CollectorRegistry())
    servicer = Servicer()
    add_BlobServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    yield server, servicer
    servicer.go_on.set()
    await server.drain()


async def test_it_tells_where_it_listens_and_that_it_serves(
    server: tuple[GrpcServer, Servicer], tmp_path: Path
) -> None:
    ready = json.loads((tmp_path / "ready.json").read_text())
    async with open_channel(ready["address"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_error_arrives_with_reason_and_next_step(
    server: tuple[GrpcServer, Servicer],
) -> None:
    async with open_channel(server[0].address) as channel:
        with pytest.raises(GraftError) as caught, rpc_errors("the registry"):
            await BlobServiceStub(channel).FindMissing(pb.FindMissingRequest(digests=["refuse"]))
    error = caught.value
    assert (error.reason, error.next_step) == (Reason.BLOB_NOT_FOUND, "Upload it.")
    assert error.metadata == {"digest": "x"}


async def test_a_fault_of_ours_is_internal_and_the_next_call_works(
    server: tuple[GrpcServer, Servicer],
) -> None:
    async with open_channel(server[0].address) as channel:
        stub = BlobServiceStub(channel)
        with pytest.raises(GraftError) as caught, rpc_errors("the registry"):
            await stub.FindMissing(pb.FindMissingRequest(digests=["fail"]))
        assert caught.value.reason is Reason.INTERNAL
        answer = await stub.FindMissing(pb.FindMissingRequest(digests=["x"]))
    assert answer.missing == ["x"]


async def test_calls_are_counted_by_method_and_code(server: tuple[GrpcServer, Servicer]) -> None:
    async with open_channel(server[0].address) as channel:
        await BlobServiceStub(channel).FindMissing(
            pb.FindMissingRequest(), metadata=call_metadata("my-request", "me")
        )
    url = f"http://{server[0].metrics_address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    method = "/graft.registry.v1.BlobService/FindMissing"
    assert f'graft_rpc_calls_total{{code="OK",method="{method}"}} 1.0' in text


async def test_from_the_first_moment_of_a_drain_it_is_unready_and_new_calls_are_told_to_retry(
    server: tuple[GrpcServer, Servicer],
) -> None:
    grpc_server, servicer = server
    async with open_channel(grpc_server.address, [("grpc.enable_retries", 0)]) as channel:
        call = BlobServiceStub(channel).Read(pb.ReadRequest())
        assert (await anext(aiter(call))).data == b"a"
        await grpc_server.refuse()
        assert await probes(channel) == (True, False, True)
        with pytest.raises(GraftError) as caught, rpc_errors("the registry"):
            await BlobServiceStub(channel).FindMissing(pb.FindMissingRequest())
        assert caught.value.reason is Reason.UNAVAILABLE
        assert caught.value.retry_after_s
        # What a failing engine that recovers says does not make it ready again.
        await grpc_server.set_serving(True)
        assert await probes(channel) == (True, False, True)
        servicer.go_on.set()
        assert (await anext(aiter(call))).data == b"b"


async def test_a_stream_in_flight_ends_whole_while_the_server_drains(
    server: tuple[GrpcServer, Servicer],
) -> None:
    grpc_server, servicer = server
    async with open_channel(grpc_server.address) as channel:
        call = BlobServiceStub(channel).Read(pb.ReadRequest())
        received = [(await anext(aiter(call))).data]
        await servicer.streaming.wait()
        draining = asyncio.create_task(grpc_server.drain())
        await asyncio.sleep(0)
        servicer.go_on.set()
        received += [answer.data async for answer in call]
        await draining
        assert received == [b"a", b"b"]
        with pytest.raises(grpc.aio.AioRpcError):
            await BlobServiceStub(channel).FindMissing(pb.FindMissingRequest(), timeout=2)
