"""The disk tier: bounded, shared by processes, verified on every read, and nothing in use is ever removed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from prometheus_client import CollectorRegistry

from services.inference.cache import AdapterCache
from services.inference.domain import AdapterVersion
from services.inference.file_locks import try_lock
from services.inference.metrics import InferenceMetrics
from services.inference.registry.memory import MemoryRegistry
from tests.support.inference import BASE, FINGERPRINT, adapter_resource, write_adapter
from tests.support.models import REPOSITORY
from tests.support.waiting import eventually

WEIGHTS_BYTES = 1000
HOLDER = """
import asyncio, sys
from pathlib import Path
from services.inference.folders import Folders
folders = Folders(Path(sys.argv[1]), None)
held = asyncio.run(folders.use(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


class Lab:
    """Versions of one size in a registry, and caches below one root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "cache"
        self.registry = MemoryRegistry(FINGERPRINT)
        self.prometheus = CollectorRegistry()
        self.metrics = InferenceMetrics(self.prometheus)

    async def version(self, content: str) -> AdapterVersion:
        adapter = adapter_resource(content)
        await self.registry.add_adapter(adapter, BASE)
        files = write_adapter(self.folder / content, content * WEIGHTS_BYTES)
        return await self.registry.add_version(adapter, files)

    def cache(self, room_for: float | None = None) -> AdapterCache:
        """With room for so many versions."""
        size_bytes = WEIGHTS_BYTES + len('{"peft_type": "LORA", "r": 8}')
        bound = None if room_for is None else int(room_for * size_bytes)
        return AdapterCache(self.root, self.registry, self.metrics, bound)

    def kept(self) -> set[str]:
        """By what is in them."""
        return {
            (folder / "adapter_model.safetensors").read_text()[0]
            for folder in self.root.iterdir()
            if not folder.name.startswith(".")
        }


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def age(lab: Lab, version: AdapterVersion, seconds: float) -> None:
    """Makes its last use so much older."""
    path = lab.root / ".locks" / f"{version.digest.removeprefix('sha256:')}.use"
    now_s = path.stat().st_mtime
    os.utime(path, (now_s - seconds, now_s - seconds))


async def test_the_least_recently_used_make_room(lab: Lab) -> None:
    cache = lab.cache(room_for=2)
    a, b, c = [await lab.version(name) for name in "abc"]
    for ago_s, version in ((20, a), (10, b)):
        (await cache.hold(version)).release()
        age(lab, version, ago_s)
    (await cache.hold(a)).release()
    (await cache.hold(c)).release()
    assert lab.kept() == {"a", "c"}
    evicted = lab.prometheus.get_sample_value(
        "graft_inference_evictions_total", {"tier": "disk", "why": "room"}
    )
    assert evicted == 1


@pytest.mark.parametrize("oldest", "abc")
async def test_the_order_of_use_survives_a_restart(lab: Lab, oldest: str) -> None:
    for name in "abc":
        version = await lab.version(name)
        (await lab.cache(room_for=3).hold(version)).release()
        age(lab, version, 20 if name == oldest else 10)
    (await lab.cache(room_for=3).hold(await lab.version("d"))).release()
    assert lab.kept() == set("abcd") - {oldest}


async def test_what_is_kept_is_not_fetched_again(lab: Lab) -> None:
    version = await lab.version("a")
    (await lab.cache().hold(version)).release()
    fetched = len(lab.registry.fetched)
    lab.registry.available = False
    (await lab.cache().hold(version)).release()
    assert len(lab.registry.fetched) == fetched


async def test_what_is_in_use_stays_though_it_is_the_oldest(lab: Lab) -> None:
    cache = lab.cache(room_for=2)
    a, b, c = [await lab.version(name) for name in "abc"]
    held = await cache.hold(a)
    age(lab, a, 1000)
    (await cache.hold(b)).release()
    (await cache.hold(c)).release()
    assert lab.kept() == {"a", "c"}
    held.release()


async def test_two_holds_of_one_version_are_two(lab: Lab) -> None:
    cache = lab.cache(room_for=1)
    a, b = [await lab.version(name) for name in "ab"]
    first, second = await cache.hold(a), await cache.hold(a)
    first.release()
    with pytest.raises(GraftError) as caught:
        await cache.hold(b)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert "CACHE_MAX_BYTES" in caught.value.next_step
    second.release()
    (await cache.hold(b)).release()
    assert lab.kept() == {"b"}


async def test_a_version_larger_than_the_bound_evicts_nobody(lab: Lab) -> None:
    a = await lab.version("a")
    (await lab.cache().hold(a)).release()
    b = await lab.version("b")
    with pytest.raises(GraftError) as caught:
        await lab.cache(room_for=0.5).hold(b)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert lab.kept() == {"a"}


async def test_what_may_not_make_room_takes_only_what_is_free(lab: Lab) -> None:
    cache = lab.cache(room_for=2)
    a, b, c = [await lab.version(name) for name in "abc"]
    for version in (a, b):
        (await cache.hold(version, make_room=False)).release()
    with pytest.raises(GraftError) as caught:
        await cache.hold(c, make_room=False)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert lab.kept() == {"a", "b"}


async def test_what_another_process_uses_stays_until_it_ends(lab: Lab) -> None:
    cache = lab.cache(room_for=1)
    a, b = [await lab.version(name) for name in "ab"]
    (await cache.hold(a)).release()
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(lab.root), a.digest.removeprefix("sha256:")),
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'sdk'}{os.pathsep}{REPOSITORY}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(GraftError) as caught:
            await cache.hold(b)
        assert caught.value.reason is Reason.STORAGE_FULL
        assert lab.kept() == {"a"}
    finally:
        # SIGKILL: nothing of its own lets the lock go.
        holder.kill()
        await holder.wait()
    (await cache.hold(b)).release()
    assert lab.kept() == {"b"}


async def test_processes_that_want_the_same_fetch_it_once(lab: Lab) -> None:
    version = await lab.version("a")
    caches = [lab.cache() for _ in range(4)]
    held = await asyncio.gather(*(cache.hold(version) for cache in caches))
    assert len(lab.registry.fetched) == 2  # its two files
    for each in held:
        each.release()


async def test_rot_is_mended_in_place_while_somebody_uses_the_folder(lab: Lab) -> None:
    version = await lab.version("a")
    user = await lab.cache().hold(version)
    weights = user.folder / "adapter_model.safetensors"
    weights.write_text("rotten")
    again = await lab.cache().hold(version)
    assert again.folder == user.folder
    assert weights.read_text() == "a" * WEIGHTS_BYTES
    for each in (user, again):
        each.release()


async def test_what_killed_processes_left_is_cleared_and_does_not_count(lab: Lab) -> None:
    cache = lab.cache(room_for=1)
    (await cache.hold(await lab.version("a"))).release()
    part, gone = lab.root / f".{'0' * 64}.99999999.part", lab.root / f".{'1' * 64}.gone"
    for folder in (part, gone):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text("half")
    (await cache.hold(await lab.version("b"))).release()
    assert not part.exists()
    assert not gone.exists()
    assert lab.kept() == {"b"}


async def test_a_failed_fetch_leaves_no_bytes_and_no_locks(lab: Lab) -> None:
    version = await lab.version("a")
    (lab.folder / "a" / "adapter_model.safetensors").write_text("evil")
    with pytest.raises(GraftError) as caught:
        await lab.cache().hold(version)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert {path.name for path in lab.root.iterdir()} == {".locks"}
    assert not list((lab.root / ".locks").glob("*.fill"))


async def test_a_cancelled_fetch_leaves_no_bytes_and_another_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await lab.version("a")
    gate, fetch = asyncio.Event(), lab.registry.fetch
    begun: list[str] = []

    async def slow(file: object, target: Path) -> None:
        begun.append(target.name)
        await gate.wait()
        await fetch(file, target)  # type: ignore[arg-type]

    monkeypatch.setattr(lab.registry, "fetch", slow)
    first = asyncio.create_task(lab.cache().hold(version))
    await eventually(lambda: len(begun) == 2, "the fetch")
    second = asyncio.create_task(lab.cache().hold(version))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    (await second).release()
    assert lab.kept() == {"a"}


async def test_a_lock_that_is_let_go_is_free_though_a_forked_process_has_it_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    held = try_lock(path, alone=False)
    assert held is not None
    (descriptor,) = [
        int(each.name)
        for each in Path("/proc/self/fd").iterdir()
        if each.is_symlink() and each.readlink() == path
    ]
    # What a fork does to a descriptor.
    copy = os.dup(descriptor)
    try:
        assert try_lock(path, alone=True) is None
        held.release()
        alone = try_lock(path, alone=True)
        assert alone is not None
        alone.release()
    finally:
        os.close(copy)


async def test_who_waits_for_anothers_fetch_goes_on_when_it_is_there_and_not_one_by_one(
    lab: Lab,
) -> None:
    one = await lab.version("a")
    key = one.digest.removeprefix("sha256:")
    (await lab.cache().hold(one)).release()
    (lab.root / key).rename(lab.folder / "whole")
    alone = try_lock(lab.root / ".locks" / f"{key}.fill", alone=True)
    assert alone is not None
    caches = [lab.cache() for _ in range(3)]
    waiting = [asyncio.create_task(cache.hold(one)) for cache in caches]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    (lab.folder / "whole").rename(lab.root / key)
    # The one that fetched it still has its lock.
    held = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    alone.release()
    for each in held:
        each.release()
    assert len(lab.registry.fetched) == len(set(lab.registry.fetched))
