"""What every Launcher must do."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from graft.kubernetes.pod_policy import PodPolicies

from services.trainer.launchers.base import Launch, Launcher, Worker
from services.trainer.launchers.fake import FakeLauncher
from services.trainer.launchers.kubernetes import KubernetesLauncher
from services.trainer.launchers.local import LocalLauncher, process_count, worker_environment
from services.trainer.launchers.scripted import Script
from tests.support.kube_api import ScriptedRun, kube_cluster
from tests.support.processes import process_environment
from tests.support.trainer import stub_worker_command, until

ENDLESS = Script(steps=10_000, step_s=0.05)
DEADLINE_S = 60.0
Start = Callable[[Launcher, Launch], Awaitable[Worker]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(
        job="namespaces/default/jobs/bot-1",
        attempt=1,
        token=secrets.token_hex(8),
        spec_json="{}",
        work_dir=tmp_path / "job",
        trainer_address="",
        registry_address="",
        slots=(0,),
        cpu_threads=1,
    )


Make = Callable[[str, Script], Awaitable[Launcher]]


@pytest.fixture
async def make(tmp_path: Path, launch: Launch) -> AsyncIterator[Make]:
    """Makes a launcher of a kind whose workers play a script."""
    async with AsyncExitStack() as stack:

        async def begin(kind: str, script: Script) -> Launcher:
            if kind == "fake":
                return FakeLauncher(lambda launch: script)
            if kind == "kubernetes":
                folder = tmp_path / "cluster"
                cluster = await stack.enter_async_context(
                    kube_cluster(folder, lambda started: ScriptedRun(started, script))
                )
                # The pods' volume is where the trainer's work folder is.
                work_dir = folder / "volumes/graft/work/default/bot-1"
                work_dir.mkdir(parents=True)
                launch.work_dir.symlink_to(work_dir)
                launcher = KubernetesLauncher(PodPolicies(), kubeconfig=cluster.kubeconfig)
                await launcher.open()
                stack.push_async_callback(launcher.close)
                return launcher
            fields = {"steps": script.steps, "step_s": script.step_s, "exit_code": script.exit_code}
            return LocalLauncher(stub_worker_command(**fields), process_environment())

        yield begin


@pytest.fixture
async def start(make: Make) -> AsyncIterator[Start]:
    """Starts a worker that does not outlive the test."""
    started: list[Worker] = []

    async def begin(launcher: Launcher, launch: Launch) -> Worker:
        started.append(await launcher.start(launch))
        return started[-1]

    yield begin
    for worker in started:
        worker.kill()
        await ended(worker)


async def ended(worker: Worker) -> int | None:
    return await asyncio.wait_for(worker.wait(), DEADLINE_S)


@pytest.mark.parametrize("kind", ["fake", "local", "kubernetes"])
class TestLauncher:
    async def test_a_worker_runs_to_its_end(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        worker = await start(await make(kind, Script(steps=2)), launch)
        assert await ended(worker) == 0
        assert (launch.work_dir / "scripted-checkpoint.json").read_text() == "2"

    async def test_its_exit_code_is_told(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        worker = await start(await make(kind, Script(exit_code=65)), launch)
        assert await ended(worker) == 65
        assert await ended(worker) == 65

    async def test_a_running_worker_is_found_by_its_handle(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        launcher = await make(kind, ENDLESS)
        worker = await start(launcher, launch)
        await worker.until_begun()
        found = await launcher.find(launch, worker.handle)
        assert found is not None
        assert found.handle == worker.handle
        found.kill()
        # The end of a pod's Job may reach it first: then it is told to end, and does so in good order.
        assert await ended(worker) in ((-9, 75) if kind == "kubernetes" else (-9,))
        await ended(found)

    async def test_a_running_worker_is_found_without_a_handle(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        launcher = await make(kind, ENDLESS)
        worker = await start(launcher, launch)
        # A process has its environment a moment after it was started: no trainer asks that soon.
        await until((launch.work_dir / "scripted-checkpoint.json").exists)
        found = await launcher.find(launch, "")
        assert found is not None
        assert found.handle == worker.handle
        worker.kill()
        await ended(found)

    async def test_another_attempts_worker_is_not_found(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        launcher = await make(kind, ENDLESS)
        await start(launcher, launch)
        assert await launcher.find(replace(launch, attempt=2, token="other"), "") is None

    async def test_a_worker_whose_end_is_stored_is_not_found(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        launcher = await make(kind, Script(steps=1))
        worker = await start(launcher, launch)
        await ended(worker)
        await worker.release()
        assert await launcher.find(launch, worker.handle) is None
        assert await launcher.find(launch, "") is None

    async def test_a_worker_that_is_asked_to_ends_as_preempted(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        worker = await start(await make(kind, ENDLESS), launch)
        await until((launch.work_dir / "scripted-checkpoint.json").exists)
        worker.terminate()
        assert await ended(worker) == 75

    async def test_ending_a_worker_that_has_ended_does_nothing(
        self, kind: str, make: Make, launch: Launch, start: Start
    ) -> None:
        worker = await start(await make(kind, Script(steps=1)), launch)
        await ended(worker)
        worker.kill()
        worker.terminate()
        assert await ended(worker) == 0


class TestLocalLauncher:
    async def test_a_recycled_process_number_is_not_taken_for_the_worker(
        self, launch: Launch
    ) -> None:
        ours = psutil.Process(os.getpid())
        handle = json.dumps({"pid": ours.pid, "create_time": ours.create_time() - 100})
        launcher = LocalLauncher(stub_worker_command(), process_environment())
        assert await launcher.find(launch, handle) is None

    async def test_nothing_that_a_worker_started_outlives_it(
        self, launch: Launch, start: Start
    ) -> None:
        code = (
            "import subprocess, sys, pathlib; child = subprocess.Popen(['sleep', '600']); "
            f"pathlib.Path({str(launch.work_dir / 'child')!r}).write_text(str(child.pid))"
        )
        launcher = LocalLauncher((sys.executable, "-c", code), process_environment())
        await ended(await start(launcher, launch))
        child = int((launch.work_dir / "child").read_text())
        await until(lambda: not alive(child))

    async def test_its_output_and_its_spec_are_in_the_work_folder(
        self, launch: Launch, start: Start
    ) -> None:
        launcher = LocalLauncher(
            (sys.executable, "-c", "import sys; print('out', open(sys.argv[1]).read())"),
            process_environment(),
        )
        await ended(await start(launcher, launch))
        assert launch.log_path.name == "attempt-1.log"
        assert launch.log_path.read_text() == "out {}\n"

    async def test_a_command_that_does_not_exist_is_an_error(self, launch: Launch) -> None:
        with pytest.raises(OSError, match="no-such-program"):
            await LocalLauncher(("no-such-program",), {}).start(launch)

    async def test_several_processes_are_started_by_torchrun_and_share_the_threads(
        self, launch: Launch, start: Start
    ) -> None:
        code = "import os, sys; print(sys.argv[1:-1], os.environ['OMP_NUM_THREADS'])"
        launcher = LocalLauncher(
            ("no-such-program",), process_environment(), team_command=(sys.executable, "-c", code)
        )
        team = replace(launch, spec_json='{"resources": {"processesPerNode": 2}}', cpu_threads=4)
        assert await ended(await start(launcher, team)) == 0
        said = launch.log_path.read_text()
        assert "'--standalone'" in said
        assert "'--nproc-per-node=2'" in said
        assert said.endswith(" 2\n")

    async def test_a_team_is_found_again_by_its_token_and_ends_as_a_whole(
        self, launch: Launch, start: Start
    ) -> None:
        # As torchrun does, which gives each of its processes a session of its own.
        code = (
            "import pathlib, subprocess, time; "
            "child = subprocess.Popen(['sleep', '600'], start_new_session=True); "
            f"file = pathlib.Path({str(launch.work_dir)!r}); "
            "(file / 'part').write_text(str(child.pid)); (file / 'part').rename(file / 'child'); "
            "time.sleep(600)"
        )
        launcher = LocalLauncher((), process_environment(), (), (sys.executable, "-c", code))
        team = replace(launch, spec_json='{"resources": {"processesPerNode": 2}}')
        worker = await start(launcher, team)
        await until(lambda: (launch.work_dir / "child").exists())
        found = await launcher.find(team, "")
        assert found is not None
        assert found.handle == worker.handle
        worker.kill()
        await ended(worker)
        child = int((launch.work_dir / "child").read_text())
        await until(lambda: not alive(child))

    def test_slots_that_are_accelerators_have_a_process_each(self, launch: Launch) -> None:
        assert process_count(replace(launch, slots=(1, 3)), "4567") == 2
        assert process_count(replace(launch, slots=(1, 3)), "") == 1
        one = replace(launch, slots=(1, 3), spec_json='{"resources": {"processesPerNode": 1}}')
        assert process_count(one, "4567") == 1

    def test_a_worker_is_told_who_it_is_and_sees_its_own_devices(self, launch: Launch) -> None:
        told = worker_environment(replace(launch, slots=(1, 3), trainer_address="h:1"), "4567")
        assert told["GRAFT_WORKER_JOB"] == launch.job
        assert told["GRAFT_WORKER_ATTEMPT"] == "1"
        assert told["GRAFT_WORKER_TOKEN"] == launch.token
        assert told["GRAFT_WORKER_TRAINER"] == "h:1"
        assert "GRAFT_WORKER_REGISTRY" not in told
        assert told["GRAFT_WORKER_DIR"] == str(launch.work_dir)
        assert told["OMP_NUM_THREADS"] == "1"
        assert told["CUDA_VISIBLE_DEVICES"] == "5,7"
        assert worker_environment(launch, ())["CUDA_VISIBLE_DEVICES"] == ""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
