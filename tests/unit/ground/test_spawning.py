"""A service starts other programs while its gRPC is busy: each becomes what it shall be, and none is lost."""

from __future__ import annotations

import subprocess
import sys

from tests.support.processes import ROOT, process_environment

_SPAWNS = 300
_PROGRAM = f"""
import asyncio
import services.common.server
import grpc
import uvloop
from graft.channel import open_channel
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

async def calls(address):
    for _ in range({_SPAWNS}):
        async with open_channel(address) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

async def spawns():
    codes = []
    for _ in range({_SPAWNS} // 2):
        process = await asyncio.create_subprocess_exec("true", stdout=asyncio.subprocess.PIPE)
        codes.append(await asyncio.wait_for(process.wait(), 30))
    return sum(code != 0 for code in codes)

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    address = f"127.0.0.1:{{server.add_insecure_port('127.0.0.1:0')}}"
    await server.start()
    *_, one, two = await asyncio.gather(calls(address), calls(address), spawns(), spawns())
    await server.stop(0)
    print(one + two)

uvloop.run(main())
"""


def test_none_of_the_programs_that_a_service_starts_is_lost_to_grpcs_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        env=process_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
