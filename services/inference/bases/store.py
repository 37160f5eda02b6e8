"""Finds the base that a reference names and brings its files to this machine's disk, verified by digest.

Folders are named by their version's digest, shared by the processes of the machine, and make room for each
other, as adapters' do (folders.py). What is held is not removed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath

from graft.digests import digest_file, is_digest
from graft.errors import GraftError, Reason, UnavailableError

from services.common.logs import get_logger
from services.inference.bases.domain import AS_IT_SAYS, BaseReference, BaseVersion, Loading, Source
from services.inference.domain import AdapterFile
from services.inference.file_locks import FileLock
from services.inference.folders import Folders
from services.inference.registry.base import Registry

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 10.0
_AT_ONCE = 4


class BaseStore:
    """Versions of bases on disk.

    Args:
        root: made when it does not exist.
        registry: which version a reference means, and its files.
        namespace: the only one whose bases are served.
        max_bytes: bound of all folders; None for none.
    """

    def __init__(
        self, root: Path, registry: Registry, namespace: str, max_bytes: int | None
    ) -> None:
        self._root, self._registry, self._namespace = root, registry, namespace
        self._folders = Folders(root, max_bytes)
        self._held: dict[Path, list[FileLock]] = {}

    async def find(self, text: str) -> BaseVersion | Path:
        """What a text means now; a folder is not looked into.

        Raises:
            GraftError: INVALID_REFERENCE, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, BASE_NOT_FOUND, UNAVAILABLE.
        """
        reference = BaseReference.parse(text, self._namespace)
        if reference is None:
            return Path(text).absolute()
        if Path(text).is_dir():
            raise GraftError(
                Reason.INVALID_REFERENCE,
                f"{text} is a folder here, and could be a base of the registry as well",
                next_step=f"Write {Path(text).absolute()} for the folder, or "
                f"namespaces/{reference.namespace}/{reference} for the registry's.",
            )
        if reference.namespace != self._namespace:
            raise GraftError(
                Reason.INVALID_REFERENCE,
                f"{text} is of namespace {reference.namespace!r}, and this service serves "
                f"{self._namespace!r}",
                next_step="Ask the service of that namespace, or set GRAFT_INFERENCE_NAMESPACE.",
            )
        return await self._registry.base_version(reference)

    async def find_patiently(self, text: str) -> BaseVersion | Path:
        """As find(), and waits for a registry that is away."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                return await self.find(text)
            except UnavailableError as error:
                get_logger().warning("waiting for the registry", base=text, error=error.message)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LAST_RETRY_S)

    async def bring(
        self, found: BaseVersion | Path, loading: Loading = AS_IT_SAYS, *, patient: bool = False
    ) -> Source:
        """Its files, fetched where they are not here or not right; held until release() as often.

        Args:
            found: as of find().
            loading: see Source.
            patient: waits for a registry that is away.

        Raises:
            GraftError: DIGEST_MISMATCH, BLOB_NOT_FOUND, STORAGE_FULL, NOT_A_MODEL, UNAVAILABLE.
        """
        if isinstance(found, Path):
            return Source(found, None, loading)
        while True:
            try:
                return Source(await self._hold(found), found, loading)
            except UnavailableError as error:
                if not patient:
                    raise
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(_LAST_RETRY_S)

    def release(self, source: Source) -> None:
        """Whoever brought it reads its folder no more."""
        held = self._held.get(source.folder)
        if held:
            held[-1].touch()
            held.pop().release()

    def close(self) -> None:
        """Lets everything go."""
        for held in self._held.values():
            while held:
                held.pop().release()

    async def _hold(self, version: BaseVersion) -> Path:
        _check_paths(version)
        key = version.digest.removeprefix("sha256:")
        folder = self._folders.folder(key)
        try:
            kept = await self._folders.use(key)
            try:
                await self._ensure(version, key, folder)
            except BaseException:
                kept.release()
                raise
        except OSError as error:
            raise GraftError(
                Reason.STORAGE_FULL,
                f"The files of {version.name} cannot be kept in {self._root}: {error.strerror}",
                next_step="Free space there, or set GRAFT_INFERENCE_BASE_CACHE_DIR.",
            ) from error
        self._held.setdefault(folder, []).append(kept)
        return folder

    async def _ensure(self, version: BaseVersion, key: str, folder: Path) -> None:
        while True:
            absent = not folder.is_dir()
            if await asyncio.to_thread(_is_right, folder, version.files):
                return
            async with self._folders.alone(key, absent=absent) as alone:
                # Another process may have fetched it meanwhile.
                if alone and not await asyncio.to_thread(_is_right, folder, version.files):
                    await self._fetch(version, key)
                if alone:
                    return

    async def _fetch(self, version: BaseVersion, key: str) -> None:
        get_logger().info("fetching the base", version=version.name, bytes=version.size_bytes)
        async with self._folders.filling(key, version.size_bytes) as part:
            turns = asyncio.Semaphore(_AT_ONCE)

            async def one(file: AdapterFile) -> None:
                async with turns:
                    (part / file.path).parent.mkdir(parents=True, exist_ok=True)
                    await self._registry.fetch(file, part / file.path)

            await asyncio.gather(*map(one, version.files))
            if not await asyncio.to_thread(_is_right, part, version.files):
                raise GraftError(
                    Reason.DIGEST_MISMATCH,
                    f"The files of {version.name} arrived with other bytes than its manifest says",
                    next_step="Check the registry's store with `graft doctor`.",
                )
            await asyncio.to_thread(self._folders.commit, part, key)


def _check_paths(version: BaseVersion) -> None:
    """The registry admits nothing else; a registry that lies shall not write elsewhere either."""
    wrong = [file.path for file in version.files if _leaves(file.path)]
    if wrong or not is_digest(version.digest):
        raise GraftError(
            Reason.NOT_A_MODEL,
            f"{version.name} has the file {wrong[0]!r}"
            if wrong
            else f"{version.name} has no digest",
            next_step="Check the registry with `graft doctor`.",
        )


def _leaves(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts or not pure.parts


def _is_right(folder: Path, files: tuple[AdapterFile, ...]) -> bool:
    try:
        return all(digest_file(folder / file.path) == file.digest for file in files)
    except OSError:
        return False
