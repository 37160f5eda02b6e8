"""Two processes, as the pods of an Indexed Job start them, train what one process trains."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from graft.digests import canonical_json
from graft.errors import GraftError
from graft.kubernetes.manual_jobs import ManualJob, render_job
from graft.kubernetes.pod_policy import PodPolicy
from graft.spec_file import spec_from_dict

from services.trainer.launchers.base import Launch
from services.trainer.launchers.local import LocalLauncher
from services.trainer.run.batches import RowOrder
from services.trainer.run.torchrun import telling_code
from services.trainer.run.trainers.shares import Share
from services.trainer.spec import parse_spec
from tests.support.pod_processes import PodProcess
from tests.support.ports import kept_port
from tests.support.processes import ROOT, halt, process_environment
from tests.support.waiting import eventually
from tests.unit.trainer_worker.support import Outcome, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
CPU = PodPolicy(gpus_per_slot=0)
# The last step of an epoch has fewer batches than there are processes.
ROWS = 44
Pods = Callable[..., list[PodProcess]]


@pytest.fixture
def pods(spec: dict[str, Any], tmp_path: Path) -> Iterator[Pods]:
    """Starts both pods of a job of two nodes; keyword arguments change the spec's fields."""
    started: list[PodProcess] = []

    def start(**changes: Any) -> list[PodProcess]:
        two = merge(merge(spec, {"resources": {"nodes": 2}}), changes)
        job = ManualJob("two-nodes", "train", spec_from_dict(two), registry_address="")
        manifests = render_job(job, CPU)
        port = kept_port()
        here = {"two-nodes-0.two-nodes": "127.0.0.1", "=29500": f"={port}"}
        both = [
            PodProcess(manifests, tmp_path / f"node-{index}", {}, index, here) for index in (0, 1)
        ]
        started.extend(both)
        return both

    yield start
    for pod in started:
        pod.close()


CHANGES: dict[str, Any] = {
    "method": {"lora": {"dropout": 0.0}},
    "dataset": {"max_rows": ROWS},
    "checkpointing": {"every_steps": 100},
}


async def test_a_drained_node_stops_both_after_one_step(pods: Pods) -> None:
    # So many steps that it cannot be over before.
    await drained(pods, hyperparameters={"epochs": 1000})


async def drained(pods: Pods, **more: Any) -> int:
    """The node of one pod is drained; the step at which both stopped."""
    first, second = pods(**CHANGES, **more)
    await eventually(lambda: first.step() >= 1, "step 1", within_s=200)
    # Neither gets further before the signal has come through to the worker: they do each step together.
    (worker,) = psutil.Process(second.process.pid).children()
    await halt(worker)
    second.process.send_signal(signal.SIGTERM)
    await eventually(lambda: is_told(worker, signal.SIGTERM), "the signal", within_s=60)
    worker.resume()
    assert (first.wait(), second.wait()) == (75, 75), first.output() + second.output()
    saved = [int(e["checkpoint_step"]) for e in first.events() if "checkpoint_step" in e]
    assert saved == [first.step()]
    assert not second.events()
    return saved[0]


# In short test_team_resume's, without nodes.
@pytest.mark.soak
async def test_those_of_a_drained_node_end_with_the_weights_of_one_process(
    pods: Pods, train: Callable[..., Outcome], tmp_path: Path
) -> None:
    saved = await drained(pods)
    first, second = pods(**CHANGES)
    assert (first.wait(), second.wait()) == (0, 0), first.output() + second.output()
    assert f"Going on from the checkpoint of step {saved}." in first.output()
    assert '"preempted": true' not in first.output()

    alone = train(**CHANGES, hyperparameters={"gradient_accumulation_steps": 2})
    assert alone.code == 0, alone.message
    work = tmp_path / "node-0/graft/work/default/two-nodes"
    both = Outcome(0, first.events(), work)
    assert both.losses[-1] == pytest.approx(alone.losses[-1], rel=1e-5)
    assert weights(both) == pytest.approx(weights(alone), rel=1e-4, abs=1e-6)
    assert not (tmp_path / "node-1/graft/work/default/two-nodes/result").exists()


def is_told(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a signal waits for a suspended process."""
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    waiting = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in waiting)


def weights(outcome: Outcome) -> Any:
    from safetensors.numpy import load_file

    tensors = load_file(outcome.work_dir / "result" / "adapter_model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


async def test_when_one_dies_the_other_ends_to_be_started_again(pods: Pods) -> None:
    # It cannot be over before the kill.
    first, second = pods(hyperparameters={"epochs": 10_000})
    await eventually(lambda: first.step() >= 2, "step 2", within_s=200)
    (worker,) = psutil.Process(second.process.pid).children()
    worker.kill()
    assert second.wait() == 137
    assert first.wait() == 75, first.output()
    assert "Another process of this job is gone" in first.end_file.read_text("utf-8")


def test_what_is_wrong_on_any_node_is_the_exit_code_of_both(pods: Pods) -> None:
    first, second = pods(dataset={"path": "/nowhere.jsonl"})
    assert (first.wait(), second.wait()) == (65, 65)
    assert "FAILURE_CAUSE_BAD_DATA" in second.end_file.read_text("utf-8")


def test_the_telling_exit_code_is_of_the_process_that_ended_by_its_own_fault() -> None:
    assert telling_code([75, 65, -signal.SIGTERM]) == 65
    assert telling_code([70, -signal.SIGKILL]) == 137
    assert telling_code([75, 70]) == 70
    assert telling_code([75, -signal.SIGTERM]) == 75


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("rows", [1, 4, 16, 21])
def test_shares_are_the_batches_of_one_process_in_turn_filled_up_with_idle_ones(
    rows: int, processes: int
) -> None:
    order = RowOrder([9] * rows, 4, seed=3)
    whole = list(order)
    batches = [whole[at : at + 4] for at in range(0, rows, 4)]
    shares = [Share(order, 4, rank, processes) for rank in range(processes)]
    taken = [[list(share)[at : at + 4] for at in range(0, len(share), 4)] for share in shares]
    assert len({len(one) for one in taken}) == 1
    in_turn = list(chain.from_iterable(zip(*taken, strict=True)))
    assert in_turn[: len(batches)] == batches
    assert all(batch == [rows] for batch in in_turn[len(batches) :])


def test_an_objective_that_one_process_trains_is_refused_for_several(spec: dict[str, Any]) -> None:
    several = merge(
        spec,
        {
            "resources": {"nodes": 2},
            "objective": {"grpo": {"rewards": [{"exact_match": {}}]}},
            "hyperparameters": {"micro_batch_size": 8},
        },
    )
    with pytest.raises(GraftError, match="one process with GRPO"):
        parse_spec(spec_from_dict(several))


@pytest.mark.soak
def test_two_processes_measure_what_one_does(
    pods: Pods, train: Callable[..., Outcome], task: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.0}},
        "hyperparameters": {"max_steps": 4},
        "dataset": {
            "eval_fraction": 0.25,
            "regression_sources": [{"path": str(task), "max_rows": 5}],
        },
        "evaluation": {
            "every_steps": 2,
            "metrics": ["token_accuracy", "rouge_l"],
            "answers": {"max_new_tokens": 8},
            "best_metric": "rouge_l",
        },
    }
    first, second = pods(**changes)
    assert (first.wait(), second.wait()) == (0, 0), first.output() + second.output()
    alone = train(**merge(changes, {"hyperparameters": {"gradient_accumulation_steps": 2}}))
    assert alone.code == 0, alone.message
    both, one = (
        [event["metrics"] for event in events if "metrics" in event][-1]
        for events in (first.events(), alone.events)
    )
    assert both["figures"] == pytest.approx(one["figures"], rel=1e-3, abs=1e-3)
    assert both["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("sharding", [{}, {"fsdp": {}}], ids=["replicated", "fsdp"])
async def test_the_local_launcher_trains_a_job_with_two_processes(
    spec: dict[str, Any], tmp_path: Path, sharding: dict[str, Any]
) -> None:
    resources = {"processes_per_node": 2, "sharding": sharding}
    job = spec_from_dict(merge(spec, {"resources": resources}))
    launch = Launch(
        job="namespaces/default/jobs/bot-1",
        attempt=1,
        token=secrets.token_hex(8),
        spec_json=canonical_json(job).decode(),
        work_dir=tmp_path / "job",
        trainer_address="",
        registry_address="",
        slots=(0,),
        cpu_threads=2,
    )
    command = (sys.executable, "-m", "services.trainer.run")
    launcher = LocalLauncher(command, process_environment())
    worker = await launcher.start(launch)
    try:
        assert await asyncio.wait_for(worker.wait(), 200) == 0, launch.log_path.read_text("utf-8")
    finally:
        worker.kill()
    assert (launch.work_dir / "result/adapter_model.safetensors").is_file()
    assert (launch.work_dir / "rank-1").is_dir()


@pytest.mark.soak
async def test_a_team_that_is_killed_on_one_machine_ends_within_a_bound(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    long = merge(spec, {"hyperparameters": {"epochs": 500}})
    path.write_text(json.dumps(long), "utf-8")
    team = start_team(path, tmp_path / "out")
    try:
        told = tmp_path / "out"
        await eventually(lambda: '"step": "2"' in told.read_text("utf-8"), "step 2", within_s=90)
        psutil.Process(team.pid).children()[-1].kill()
        assert team.wait(60) == 137
    finally:
        for process in [*psutil.Process(team.pid).children(True)] if team.poll() is None else []:
            process.kill()
        team.kill()


def start_team(spec: Path, output: Path) -> subprocess.Popen[bytes]:
    """Two processes of this machine, as one starts them by hand."""
    with output.open("wb") as out:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "services.trainer.run.torchrun", "--standalone"),
                *("--local-addr=127.0.0.1", "--nproc-per-node=2", str(spec)),
            ],
            cwd=ROOT,
            env=process_environment() | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
