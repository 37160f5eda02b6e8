"""Versions of bases: merged, fully tuned or quantized checkpoints, pushed, listed and pulled."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from graft import convert, folders
from graft.blobs import describe_file
from graft.catalogue import Bases, Find, versions_of
from graft.connection import Connection
from graft.errors import GraftError, NotFoundError, Reason
from graft.names import base_name, default_base_id, version_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import Version
from graft.transfers import Transferred, fetch_files, upload_files

_PEER = "the registry"
# What save_pretrained() writes of a model and its tokenizer; the registry checks every one.
_KINDS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE", "NOTICE")
# Of a training run, or of Hub folders; not of a model.
_LEFT_OUT = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


class BaseVersions:
    """The versions of a namespace's bases. A name is short ("tiny") or a full resource name."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._namespace = connection, namespace
        self._bases = Bases(connection, namespace)

    def _full(self, base: str) -> str:
        return base if base.startswith("namespaces/") else base_name(self._namespace, base)

    async def list(self, base: str, **find: Unpack[Find]) -> Sequence[Version]:
        """A base's versions, newest first where no order is asked for.

        Raises:
            GraftError: BASE_NOT_FOUND; INVALID_FILTER, naming the position; INVALID_REQUEST (the
                order).
        """
        return await versions_of(self._connection, self._full(base), find)

    async def get(self, base: str, version: int) -> Version:
        """One version of a base.

        Raises:
            GraftError: VERSION_NOT_FOUND.
        """
        request = pb.GetVersionRequest(name=version_name(self._full(base), version))
        found = await self._connection.call(self._connection.registry.GetVersion, request, _PEER)
        return convert.version(found)

    async def push(
        self,
        folder: str | Path,
        base: str = "",
        *,
        method: str = "full",
        parents: Sequence[str] = (),
        progress: Transferred | None = None,
        request_id: str | None = None,
    ) -> Version:
        """Makes a model's folder the next version of a base; records the base where it is new.

        Args:
            folder: config.json, a tokenizer and safetensors files.
            base: its base; by default named like the folder.
            method: how it was made: "merge", "full", "quantize".
            parents: full names of the versions that it was made from.
            progress: called with a file's path, the bytes moved just now and its size.
            request_id: makes a repeated call answer what the first one did.

        Raises:
            GraftError: NOT_A_MODEL, VERSION_REFUSED, STORAGE_FULL, QUOTA_EXCEEDED.
        """
        folder = Path(folder).absolute()
        full = self._full(base or default_base_id(folder.name))
        await self._record(full, folder)
        files = [await asyncio.to_thread(describe_file, folder, path) for path in _files(folder)]
        request = pb.CommitVersionRequest(
            parent=full,
            files=files,
            method=method,
            lineage=pb.Lineage(parent_versions=parents),
            request_id=request_id or uuid.uuid4().hex,
        )
        async with self._connection.lease([file.digest for file in files], "upload"):
            here = [(file, folder / file.path) for file in files]
            await upload_files(self._connection.blobs, here, progress)
            answer = await self._connection.call(
                self._connection.registry.CommitVersion,
                request,
                _PEER,
                timeout_s=max(3600.0, self._connection.timeout_s),
            )
        return convert.version(answer)

    async def pull(
        self, base: str, version: int, folder: str | Path, *, progress: Transferred | None = None
    ) -> Version:
        """Writes a version to a new folder that transformers and vLLM load.

        Raises:
            GraftError: ALREADY_EXISTS (the folder), VERSION_NOT_FOUND, DIGEST_MISMATCH.
        """
        request = pb.GetVersionRequest(name=version_name(self._full(base), version))
        found = await self._connection.call(self._connection.registry.GetVersion, request, _PEER)
        with folders.new_folder(Path(folder)) as part:
            await fetch_files(self._connection.blobs, found.manifest.files, part, progress)
        return convert.version(found)

    async def _record(self, full: str, folder: Path) -> None:
        try:
            await self._bases.get(full)
        except NotFoundError:
            await self._bases.add(folder, full.rpartition("/")[2])


def _files(folder: Path) -> list[Path]:
    found = {path for kind in _KINDS for path in folder.glob(kind) if path.is_file()}
    paths = sorted(path for path in found if path.name not in _LEFT_OUT)
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise GraftError(
                Reason.NOT_A_MODEL,
                f"{path.name} in {folder} is a link to a file outside of it",
                next_step="Copy the file into the folder, if it belongs to the model.",
                path=path,
            )
    return paths
