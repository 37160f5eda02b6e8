"""The disk tier: folders by key below one root, bounded in bytes, shared by processes of one machine.

It knows nothing of versions or of what is right; see cache.py for that. A folder in use, by whichever
process, is never removed. All state is in the file system, so it survives restarts and crashes:

    {key}/               a folder that is there
    .{key}.{bytes}.part  one that is being filled; it counts with the bytes that it will have
    .{key}.gone          one that is being removed
    .locks/{key}.use     held together by all who use it; its time is that of the last use
    .locks/{key}.fill    held alone by who fills it
    .locks/room          held alone by who counts and makes room
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError, Reason

from services.inference.file_locks import FileLock, lock, try_lock

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What is kept: whole folders, and the bytes of all, with those that are being filled."""

    folders: int
    size_bytes: int


class Folders:
    """See the module.

    Args:
        root: made when it does not exist.
        max_bytes: bound of everything in it; None for none.
        evicted: called with the key of each folder that this process removed to make room.
    """

    def __init__(
        self, root: Path, max_bytes: int | None, evicted: Callable[[str], None] = lambda _: None
    ) -> None:
        self._root, self._max_bytes, self._evicted = root, max_bytes, evicted
        self._locks = root / ".locks"

    def folder(self, key: str) -> Path:
        """Where it is, or would be."""
        return self._root / key

    async def use(self, key: str) -> FileLock:
        """Keeps the folder from being removed, also before it is there, until it is released."""
        self._locks.mkdir(parents=True, exist_ok=True)
        held = await lock(self._locks / f"{key}.use", alone=False)
        held.touch()
        return held

    @asynccontextmanager
    async def filling(
        self, key: str, size_bytes: int, *, make_room: bool = True
    ) -> AsyncIterator[Path]:
        """An empty folder to fill; commit() makes it the key's. What is left of it goes at the end.

        Args:
            make_room: folders that nobody uses may go for it.

        Raises:
            GraftError: STORAGE_FULL when what is in use leaves no room for it.
        """
        part = self._root / f".{key}.{size_bytes}.part"
        try:
            await self._reserve(part, size_bytes, make_room=make_room)
            yield part
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, part, ignore_errors=True))

    @asynccontextmanager
    async def alone(self, key: str, *, absent: bool) -> AsyncIterator[bool]:
        """One process at a time fills a key; yields whether it is this one.

        Those that wait for a folder that is not there go on, all at once, when another has put it in
        place; it is whole then. They need not be alone for that.

        Args:
            absent: the folder was not there when this process looked whether it is right.
        """
        while (held := try_lock(self._locks / f"{key}.fill", alone=True)) is None:
            await asyncio.sleep(_POLL_S)
            if absent and self.folder(key).is_dir():
                yield False
                return
        try:
            yield True
        finally:
            held.remove()
            held.release()

    async def _reserve(self, part: Path, size_bytes: int, *, make_room: bool) -> None:
        room = await lock(self._locks / "room", alone=True)
        try:
            await asyncio.to_thread(self._find_room, size_bytes, evict=make_room)
            # What an ended process left of the same.
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
            part.mkdir()
        finally:
            room.release()

    def commit(self, part: Path, key: str) -> None:
        """Puts what was filled in place; of a damaged folder, which somebody may use, file by file."""
        folder = self.folder(key)
        if folder.is_dir():
            for file in part.iterdir():
                file.replace(folder / file.name)
        else:
            part.rename(folder)

    def usage(self) -> Usage:
        """What is kept now, by all processes."""
        sizes = self._sizes()
        return Usage(len(sizes), sum(sizes.values()) + self._filling_bytes())

    def _find_room(self, size_bytes: int, *, evict: bool) -> None:
        self._clear_leftovers()
        if self._max_bytes is None:
            return
        sizes = self._sizes()
        kept_bytes = sum(sizes.values()) + self._filling_bytes()
        excess = kept_bytes + size_bytes - self._max_bytes
        if evict and size_bytes <= self._max_bytes:
            for key in sorted(sizes, key=self._used_s):
                if excess <= 0:
                    break
                if self._remove(key):
                    excess -= sizes[key]
        if excess > 0:
            raise GraftError(
                Reason.STORAGE_FULL,
                f"{size_bytes} bytes more do not fit into {self._root}: {self._max_bytes} are allowed, "
                f"and what is in use leaves {max(0, size_bytes - excess)}",
                next_step="Raise GRAFT_INFERENCE_CACHE_MAX_BYTES, or lower GRAFT_INFERENCE_MAX_ADAPTERS.",
            )

    def _remove(self, key: str) -> bool:
        """Removes a folder that nobody uses; returns whether it did."""
        held = try_lock(self._locks / f"{key}.use", alone=True)
        if held is None:
            return False
        try:
            gone = self._root / f".{key}.gone"
            self.folder(key).rename(gone)
            held.remove()
        finally:
            held.release()
        shutil.rmtree(gone, ignore_errors=True)
        self._evicted(key)
        return True

    def _clear_leftovers(self) -> None:
        """What processes left that were killed while they filled or removed a folder."""
        for gone in self._root.glob(".*.gone"):
            shutil.rmtree(gone, ignore_errors=True)
        for part in self._root.glob(".*.part"):
            key = part.name[1:].partition(".")[0]
            held = try_lock(self._locks / f"{key}.fill", alone=True)
            if held is not None:
                shutil.rmtree(part, ignore_errors=True)
                held.remove()
                held.release()

    def _sizes(self) -> dict[str, int]:
        with os.scandir(self._root) as entries:
            return {
                entry.name: _size_bytes(Path(entry.path))
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(".")
            }

    def _filling_bytes(self) -> int:
        return sum(int(part.name.split(".")[2]) for part in self._root.glob(".*.part"))

    def _used_s(self, key: str) -> float:
        for path in (self._locks / f"{key}.use", self.folder(key)):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0


def _size_bytes(folder: Path) -> int:
    total = 0
    # Another process may be removing it.
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total
