"""A file in the registry's blob store, uploaded by whoever created the job."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from graft.blobs import BlobClient
from graft.channel import open_channel
from graft.common.v1.common_pb2 import File
from graft.errors import GraftError, NotFoundError, Reason

from services.trainer.sources.base import Fetched, RemoteSource
from services.trainer.spec import DatasetSource

Run = Callable[[Coroutine[Any, Any, None]], None]


class BlobSource(RemoteSource):
    """Blobs of a registry.

    Args:
        registry_address: "host:port"; "" for none.
        actor: who asks, for the registry's log.
        run: does what is to be done over the network, and waits for it.
        attempts: how often in a row a transfer may fail without a byte more.
    """

    def __init__(self, registry_address: str, actor: str, run: Run, attempts: int = 5) -> None:
        self._registry_address, self._actor, self._run = registry_address, actor, run
        self._attempts = attempts

    def takes(self, source: DatasetSource) -> bool:
        return bool(source.blob_digest)

    def fetch_now(self, source: DatasetSource, folder: Path) -> Fetched:
        if not self._registry_address:
            raise GraftError(
                Reason.INVALID_SPEC,
                "dataset.blob_digest needs a registry, and this worker has none",
                next_step="Use dataset.path, or set GRAFT_WORKER_REGISTRY.",
            )
        path = folder / source.blob_name
        if not path.exists():
            self._run(self._fetch(source, path))
        return Fetched(path)

    async def _fetch(self, source: DatasetSource, path: Path) -> None:
        file = File(path=source.blob_name, digest=source.blob_digest)
        async with open_channel(self._registry_address) as channel:
            try:
                await BlobClient(channel, self._attempts, self._actor).fetch(file, path)
            except NotFoundError:
                raise GraftError(
                    Reason.BAD_DATA,
                    f"The registry does not hold {source.blob_name} ({source.blob_digest})",
                    next_step="Upload it before the job is created, as train(upload=True) does.",
                    file=source.blob_name,
                ) from None
