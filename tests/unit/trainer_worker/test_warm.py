"""Workers that wait with their libraries read: who gets them, what they do, and that none is left behind."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from graft.digests import digest_file

from services.trainer.launchers import idle, warm
from services.trainer.launchers.base import Launch
from services.trainer.launchers.local import LocalLauncher
from services.trainer.launchers.warm import WarmWorkers
from tests.support.processes import process_environment
from tests.support.waiting import eventually
from tests.unit.trainer_worker.support import Outcome

_WITHIN_S = 200.0
COLD = (sys.executable, "-c", "raise SystemExit(3)")
VARIABLES = {"CUDA_VISIBLE_DEVICES": ""}


def launch(folder: Path, spec: dict[str, Any], **changes: Any) -> Launch:
    fields: dict[str, Any] = {
        "job": "namespaces/default/jobs/j1",
        "attempt": 1,
        "token": "secret",
        "spec_json": json.dumps(spec),
        "work_dir": folder,
        "trainer_address": "",
        "registry_address": "",
        "slots": (0,),
        "cpu_threads": 1,
    }
    return Launch(**{**fields, **changes})


def waiting() -> list[int]:
    """Processes of this test that wait for a job."""
    return [each.pid for each in psutil.Process().children() if is_warm(each)]


def is_warm(process: psutil.Process) -> bool:
    try:
        return "services.trainer.run.warm" in process.cmdline()
    except psutil.NoSuchProcess:  # It has ended meanwhile, or nobody has asked yet how it ended.
        return False


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much memory other tests of this machine have just taken."""
    memory = SimpleNamespace(available=16 * 1024**3)
    monkeypatch.setattr(warm, "psutil", SimpleNamespace(virtual_memory=lambda: memory))


@asynccontextmanager
async def opened() -> AsyncIterator[LocalLauncher]:
    """A launcher whose cold workers do nothing but end with code 3."""
    launcher = LocalLauncher(COLD, process_environment(), warm_workers=1)
    await launcher.open()
    # It has another command line until it is what it shall be.
    await eventually(lambda: len(waiting()) == 1, "one that waits")
    try:
        yield launcher
    finally:
        await launcher.close()
    assert waiting() == []


@pytest.mark.training
async def test_a_process_that_waited_does_the_job_to_the_same_bits(
    spec: dict[str, Any], tmp_path: Path, train: Callable[..., Outcome]
) -> None:
    async with opened() as launcher:
        (waited,) = waiting()
        one = launch(tmp_path / "warm", spec)
        worker = await launcher.start(one)
        assert json.loads(worker.handle)["pid"] == waited
        # Another trainer finds it, also where this one died before it had stored the handle.
        found = await LocalLauncher(COLD, {}).find(one, "")
        assert found is not None
        assert found.handle == worker.handle
        assert await asyncio.wait_for(worker.wait(), _WITHIN_S) == 0, one.log_path.read_text()
        await eventually(lambda: len(waiting()) == 1, "the next that waits")
    result = digest_file(one.work_dir / "result/adapter_model.safetensors")
    assert result == train().weights_digest


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"base": {"quantization": "QUANTIZATION_NF4"}}},
        {"spec": {"base": {"source": "hub/not-here"}}},
        {"spec": {"resources": {"processesPerNode": 2}}},
        {"spec": {"objective": {"sft": 1}}},
        {"kind": "merge", "spec": {}},
    ],
    ids=["few bits", "from the Hub", "several processes", "a wrong spec", "a merge"],
)
async def test_a_job_that_needs_other_libraries_gets_a_process_of_its_own(
    spec: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    changed = {**spec, **change["spec"]}
    launcher = LocalLauncher(COLD, process_environment(), team_command=COLD, warm_workers=1)
    await launcher.open()
    try:
        await eventually(lambda: len(waiting()) == 1, "one that waits")
        before = waiting()
        one = launch(tmp_path / "job", changed, kind=change.get("kind", "train"))
        worker = await launcher.start(one)
        assert await asyncio.wait_for(worker.wait(), _WITHIN_S) == 3
        assert waiting() == before
    finally:
        await launcher.close()


async def test_one_that_died_while_it_waited_is_not_given_a_job(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    async with opened() as launcher:
        (waited,) = waiting()
        process = psutil.Process(waited)
        process.kill()
        await eventually(lambda: process.status() == psutil.STATUS_ZOMBIE, "its end")
        worker = await launcher.start(launch(tmp_path / "job", spec))
        assert await asyncio.wait_for(worker.wait(), _WITHIN_S) == 3


async def test_none_reads_its_libraries_before_the_machine_has_time() -> None:
    time_comes = asyncio.Event()

    async def until_idle() -> None:
        await time_comes.wait()

    environment = process_environment()
    launcher = LocalLauncher(COLD, environment, warm_workers=1, until_idle=until_idle)
    await launcher.open()
    try:
        await asyncio.sleep(0)
        assert waiting() == []
        time_comes.set()
        await eventually(lambda: len(waiting()) == 1, "one that waits")
    finally:
        await launcher.close()
    assert waiting() == []


async def test_a_launcher_that_ends_before_the_machine_has_time_starts_none() -> None:
    environment, never = process_environment(), asyncio.Event()

    async def until_idle() -> None:
        await never.wait()

    launcher = LocalLauncher(COLD, environment, warm_workers=1, until_idle=until_idle)
    await launcher.open()
    await launcher.close()
    assert waiting() == []


async def test_a_machine_has_time_when_a_core_has_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows in which others work, then one in which they do not."""
    clock_s = idle_s = 0.0
    rests = iter([0.1, 0.5, 1.2])

    async def sleep(seconds: float) -> None:
        nonlocal clock_s, idle_s
        clock_s += seconds
        idle_s += seconds * next(rests)

    monkeypatch.setattr(idle, "time", SimpleNamespace(monotonic=lambda: clock_s))
    monkeypatch.setattr(idle, "asyncio", SimpleNamespace(sleep=sleep))
    cpus = SimpleNamespace(cpu_times=lambda: SimpleNamespace(idle=idle_s))
    monkeypatch.setattr(idle, "psutil", cpus)
    await idle.until_a_core_is_idle()
    assert list(rests) == []
    # Not for ever on a machine that never rests.
    rests = iter([0.0] * 1000)
    await idle.until_a_core_is_idle(patience_s=30.0)
    assert len(list(rests)) == 990


async def test_one_that_waits_ends_with_the_trainer_however_that_ends() -> None:
    workers = WarmWorkers(1, process_environment())
    workers.prepare(VARIABLES)
    process = workers.take("")
    assert process is not None
    assert process.stdin is not None
    # What the system does when the trainer is killed.
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, _WITHIN_S) == 0


def test_none_waits_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available = 1024**3

    monkeypatch.setattr(warm, "psutil", SimpleNamespace(virtual_memory=Full))
    workers = WarmWorkers(1, process_environment())
    workers.prepare(VARIABLES)
    assert workers.take("") is None
