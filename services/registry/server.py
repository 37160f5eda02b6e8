"""The registry's composition root: the only place that constructs its parts."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.registry.v1 import blob_service_pb2 as blob_pb
from graft.registry.v1 import blob_service_pb2_grpc as blob_rpc
from graft.registry.v1 import operations_service_pb2 as operations_pb
from graft.registry.v1 import operations_service_pb2_grpc as operations_rpc
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2_grpc as rpc
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from services.common.server import GrpcServer
from services.common.tracing_setup import tracing_from_environment
from services.registry.admission.admit import Admission, Limits
from services.registry.blob_servicer import BlobServicer
from services.registry.blobs.base import BlobStore
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.blobs.s3 import S3BlobStore
from services.registry.blobs.s3_client import S3Options
from services.registry.catalogue.approvals import Approvals
from services.registry.catalogue.audit import AuditLog
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.collection import Collection
from services.registry.catalogue.database import Database
from services.registry.catalogue.finding import Finder
from services.registry.catalogue.leases import Leases
from services.registry.catalogue.lineage import LineageGraph
from services.registry.catalogue.listen import Listener
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.locks import Locks
from services.registry.catalogue.lookup import VersionLookup
from services.registry.catalogue.policies import Policies
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.secrets import shared_secret
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.updates import Updates
from services.registry.catalogue.usage import Namespaces
from services.registry.collection.clock import LeaseClock
from services.registry.collection.collector import Collector, Rules
from services.registry.collection.loop import LOOK_S, CollectionLoop
from services.registry.commit import VersionCommitter
from services.registry.config import RegistrySettings
from services.registry.convert.messages import version_message
from services.registry.metrics import RegistryMetrics
from services.registry.objects import Objects
from services.registry.operations_servicer import OperationsServicer
from services.registry.pages import PageTokens
from services.registry.pulse import Pulse
from services.registry.retention import Compaction, Retention
from services.registry.rpcs.base import Parts
from services.registry.rpcs.operations import OperationsParts
from services.registry.servicer import RegistryServicer
from services.registry.watch import ChangeFeed

_SERVICES = tuple(
    service.full_name
    for module in (pb, blob_pb, operations_pb)
    for service in module.DESCRIPTOR.services_by_name.values()
)
# Whoever asks for a blob again within this time need not be noted.
_FRESH_S = 600.0
# Uploads that a client tries again to complete are not taken away under it.
_LEAST_ORPHAN = timedelta(hours=1)
# For calls in flight beside a watch that does not read; an upload that it cuts goes on later.
_STUCK_DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class _Ground:
    """What all services of a registry stand on."""

    settings: RegistrySettings
    database: Database
    catalogue: SqlCatalogue
    blobs: BlobStore
    metrics: RegistryMetrics
    tokens: PageTokens


class RegistryServer:
    """One registry process: on a data folder of its own, or with others on one PostgreSQL.

    Args:
        settings: see RegistrySettings.
        blobs: the store of bytes, where it is not to be the file system.
    """

    def __init__(self, settings: RegistrySettings, blobs: BlobStore | None = None) -> None:
        self._settings, self._given_blobs = settings, blobs
        self._opened = AsyncExitStack()
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """Opens the data folder and serves.

        Raises:
            GraftError: UNAVAILABLE when another registry has the folder, or when the database cannot
                be used.
        """
        try:
            await self._start()
        except BaseException:
            await self._opened.aclose()
            raise

    async def _start(self) -> None:
        settings = self._settings
        changed, prometheus = Pulse(), CollectorRegistry()
        metrics = RegistryMetrics(prometheus)
        tracing = tracing_from_environment("registry")
        self._opened.push_async_callback(asyncio.to_thread, tracing.close)
        database = Database(await self._open_engine(changed), changed)
        catalogue = SqlCatalogue(database)
        self._opened.push_async_callback(catalogue.close)
        blobs = self._given_blobs or open_blobs(settings)
        self._opened.push_async_callback(blobs.close)
        feed = ChangeFeed(catalogue, changed, settings.bookmark_interval_s, metrics.count)
        server = GrpcServer(settings, _SERVICES, prometheus, tracing)
        tokens = PageTokens(await shared_secret(database, "page-tokens"))
        ground = _Ground(settings, database, catalogue, blobs, metrics, tokens)
        collector = _serve(server, ground, feed)
        await _fill(metrics, catalogue, blobs, feed)
        await self._run(feed)
        await self._run(Compaction(catalogue, _retention(settings)))
        await self._run(CollectionLoop(collector, settings.collection_interval_s))
        await server.start()
        self._opened.push_async_callback(_drain, server, feed)
        self.address, self.metrics_address = server.address, server.metrics_address

    async def _run(self, loop: ChangeFeed | Compaction | CollectionLoop) -> None:
        """Until the registry ends."""
        await loop.start()
        self._opened.push_async_callback(loop.close)

    async def _open_engine(self, changed: Pulse) -> AsyncEngine:
        settings = self._settings
        if settings.postgres_url is None:
            self._opened.callback(os.close, lock_folder(settings.data_dir))
            return await open_sqlite(settings.database_path)
        # Any number of registries share it, and may share the folder of the blobs.
        engine = await open_postgres(settings.postgres_url, settings.database_connections)
        listener = Listener(settings.postgres_url, changed)
        await listener.start()
        self._opened.push_async_callback(listener.close)
        return engine

    async def stop(self) -> None:
        """Ends watches, lets other calls finish within the drain time, and closes everything."""
        await self._opened.aclose()


def _serve(server: GrpcServer, ground: _Ground, feed: ChangeFeed) -> Collector:
    """Adds the three services; what collects garbage is run by one of them, and by the clock."""
    settings, database = ground.settings, ground.database
    rpc.add_RegistryServiceServicer_to_server(RegistryServicer(_parts(ground, feed)), server.grpc)
    locks = Locks(database.engine)
    fresh_s = min(_FRESH_S, settings.collection_grace_s / 4)
    objects = Objects(ground.blobs, BlobIndex(database, locks, fresh_s))
    blob_rpc.add_BlobServiceServicer_to_server(
        BlobServicer(objects, settings.max_file_bytes, ground.metrics), server.grpc
    )
    leases = Leases(database)
    collector = Collector(
        Collection(database),
        leases,
        LeaseClock(time.monotonic, 4 * LOOK_S),
        ground.blobs,
        objects,
        locks,
        _rules(settings),
        ground.metrics.blob_bytes.dec,
    )
    parts = OperationsParts(
        leases, Namespaces(database), collector, AuditLog(database), ground.tokens
    )
    operations_rpc.add_OperationsServiceServicer_to_server(OperationsServicer(parts), server.grpc)
    return collector


def _parts(ground: _Ground, feed: ChangeFeed) -> Parts:
    settings, database, catalogue = ground.settings, ground.database, ground.catalogue
    admission = Admission(ground.blobs, _limits(settings))
    return Parts(
        catalogue,
        VersionCommitter(catalogue, admission, ground.metrics),
        feed,
        Lives(database, timedelta(seconds=settings.undelete_window_s)),
        VersionLookup(database, version_message),
        Finder(database),
        Updates(database),
        LineageGraph(database),
        ground.tokens,
        Policies(database),
        Approvals(database),
    )


async def _drain(server: GrpcServer, feed: ChangeFeed) -> None:
    # Watches have no end: they are told first, so that the drain waits for real calls only. One
    # whose client does not read cannot even be told, and would hold the transport to the last.
    if await feed.close():
        await asyncio.gather(server.drain(), server.grpc.stop(_STUCK_DRAIN_S))
    else:
        await server.drain()


async def _fill(
    metrics: RegistryMetrics, catalogue: SqlCatalogue, blobs: BlobStore, feed: ChangeFeed
) -> None:
    counts = await catalogue.counts()
    metrics.adapters.set(counts["adapters"])
    metrics.bases.set(counts["bases"])
    metrics.versions.set(counts["versions"])
    metrics.blob_bytes.set(await blobs.total_bytes())
    metrics.watchers.set_function(lambda: feed.watchers)
    metrics.watch_lag.set_function(lambda: feed.lag)


def open_blobs(settings: RegistrySettings) -> BlobStore:
    """The store of bytes that the settings name."""
    if not settings.s3_bucket:
        return FilesystemBlobStore(settings.blobs_path)
    return S3BlobStore(
        S3Options(
            bucket=settings.s3_bucket,
            prefix=settings.s3_prefix,
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            region=settings.s3_region,
            allow_http=settings.s3_allow_http,
            request_timeout_s=settings.s3_request_timeout_s,
            stall_timeout_s=settings.s3_stall_timeout_s,
            max_retries=settings.s3_max_retries,
            retry_timeout_s=settings.s3_retry_timeout_s,
            signed_url_ttl_s=settings.signed_url_ttl_s,
        )
    )


def _limits(settings: RegistrySettings) -> Limits:
    return Limits(
        max_file_bytes=settings.max_file_bytes,
        max_version_bytes=settings.max_version_bytes,
        max_tensors=settings.max_tensors,
        max_header_bytes=settings.max_header_bytes,
        max_rank=settings.max_rank,
    )


def _rules(settings: RegistrySettings) -> Rules:
    grace = timedelta(seconds=settings.collection_grace_s)
    return Rules(
        grace=grace,
        history=timedelta(seconds=settings.alias_history_retention_s),
        orphans=max(grace, _LEAST_ORPHAN),
    )


def _retention(settings: RegistrySettings) -> Retention:
    return Retention(
        age_s=settings.event_retention_s,
        events=settings.event_retention_count,
        interval_s=settings.compaction_interval_s,
    )


def lock_folder(folder: Path) -> int:
    """Holds the folder for this process until the handle is closed, also by a crash.

    Raises:
        GraftError: UNAVAILABLE when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "registry.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise GraftError(
            Reason.UNAVAILABLE,
            f"Another registry runs on {folder}",
            next_step="Stop it, or set GRAFT_REGISTRY_DATA_DIR to another folder.",
        ) from None
    return handle
