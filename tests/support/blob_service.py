"""BlobService by itself over a store, for tests that need nothing else of a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from graft.channel import open_channel
from graft.registry.v1.blob_service_pb2_grpc import add_BlobServiceServicer_to_server
from prometheus_client import CollectorRegistry

from services.common.server import GrpcServer
from services.registry.blob_servicer import BlobServicer
from services.registry.blobs.base import BlobStore
from services.registry.config import RegistrySettings
from services.registry.metrics import RegistryMetrics


@asynccontextmanager
async def blob_service(store: BlobStore) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to BlobService, served from a store by itself."""
    metrics = CollectorRegistry()
    server = GrpcServer(RegistrySettings(), (), metrics)
    servicer = BlobServicer(store, 2**40, RegistryMetrics(metrics))
    add_BlobServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield channel
    finally:
        await server.drain()
        await store.close()
