"""A worker whose steps do not get on: what counts as that, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.run.pulse import Pulse
from services.trainer.run.watchdog import watch_over
from services.trainer.stall import Beat, StallLimits
from services.trainer.verdict import EXIT_STALLED
from tests.support.processes import process_environment
from tests.unit.trainer_worker.support import ROOT, Outcome, write_spec

LIMITS = StallLimits(factor=10, least_s=60, first_s=600)


@pytest.mark.parametrize(
    ("beat", "stalled"),
    [
        (Beat(5, 0.0, 2.0), False),
        (Beat(5, 59.0, 2.0), False),  # Short steps: the least that is waited.
        (Beat(5, 61.0, 2.0), True),
        (Beat(5, 199.0, 20.0), False),  # Long steps: ten of them.
        (Beat(5, 201.0, 20.0), True),
        (Beat(0, 599.0, 0.0), False),  # The first one compiles and reads ahead.
        (Beat(0, 601.0, 0.0), True),
    ],
)
def test_a_step_may_take_so_many_times_as_the_longest(beat: Beat, stalled: bool) -> None:
    said = LIMITS.stalled(beat)
    assert bool(said) == stalled
    if stalled:
        assert f"step {beat.step + 1} has not ended in" in said
    assert not StallLimits(factor=0).stalled(beat)


def test_only_time_within_steps_counts() -> None:
    now = 0.0
    pulse = Pulse(lambda: now)
    assert pulse.beat() == Beat()
    now = 1000.0  # Reading and tokenizing.
    assert pulse.beat().quiet_s == 0
    pulse.works()
    now += 30.0
    assert pulse.beat() == Beat(0, 30.0, 0.0)
    pulse.step_done(1)
    now += 1000.0  # An evaluation and a checkpoint.
    assert pulse.beat() == Beat(1, 0.0, 0.0)  # The first step says nothing of the others.
    pulse.works()
    now += 3.0
    pulse.step_done(2)
    pulse.works()
    now += 1.0
    assert pulse.beat() == Beat(2, 1.0, 3.0)


def test_a_worker_by_itself_watches_over_itself() -> None:
    pulse, ended = Pulse(), list[str]()
    pulse.works()
    thread = watch_over(pulse, StallLimits(1, 0.02, 0.02), ended.append)
    thread.join(timeout=200)
    assert "step 1 has not ended" in ended[0]


@pytest.mark.training
def test_a_loader_that_hangs_is_ended_with_its_stack_and_the_next_attempt_goes_on(
    spec: dict[str, Any], tmp_path: Path, train: Callable[..., Outcome]
) -> None:
    spec["hyperparameters"] |= {"max_steps": 6}
    spec["checkpointing"] = {"every_steps": 2}
    work = tmp_path / "work"
    path = write_spec(spec, work)
    hanging = (
        "import pathlib, sys, threading, time\n"
        "from services.trainer.run import __main__ as worker\n"
        "from services.trainer.run.batches import PaddedRows\n"
        "from services.trainer.run.pulse import Pulse\n"
        "made = 0\n"
        "def forever_in_the_loader(self, features):\n"
        "    global made\n"
        "    made += 1\n"
        "    if made == 4:\n"
        "        threading.Event().wait()\n"
        "    return real(self, features)\n"
        "real, PaddedRows.__call__ = PaddedRows.__call__, forever_in_the_loader\n"
        # A checkpoint is written beside the steps: the clock of step 3 begins when that of step 2 is there.
        "def works(self):\n"
        "    while self.beat().step == 2 and not stored.exists():\n"
        "        time.sleep(0.01)\n"
        "    really_works(self)\n"
        "stored = pathlib.Path(sys.argv[1]).parent / 'checkpoints/step-000000002'\n"
        "really_works, Pulse.works = Pulse.works, works\n"
        "sys.exit(worker.main(sys.argv[1:]))\n"
    )
    environment = process_environment() | {
        "GRAFT_WORKER_DIR": str(work),
        "GRAFT_WORKER_JOB": "namespaces/default/jobs/j1",
        "GRAFT_WORKER_STALL_FACTOR": "0.001",
        # A step takes some hundredths of that.
        "GRAFT_WORKER_STALL_LEAST_S": "5",
        "GRAFT_WORKER_STALL_FIRST_S": "200",
    }
    done = subprocess.run(
        [sys.executable, "-c", hanging, str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == EXIT_STALLED, done.stderr
    # The loader is a batch ahead.
    assert "Stalled: step 3 has not ended" in done.stderr
    assert "forever_in_the_loader" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("Ended, because it stalled: step 3")
    resumed = train(**{name: spec[name] for name in ("hyperparameters", "checkpointing")})
    assert "Going on from the checkpoint of step 2." in resumed.log
    assert resumed.code == 0, resumed.message
