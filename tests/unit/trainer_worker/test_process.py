"""A worker's life as a process: killed and started again, preempted, interrupted, refused."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.unit.trainer_worker.support import Outcome, WorkerProcess

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Start = Callable[..., WorkerProcess]


def test_a_killed_or_preempted_worker_ends_with_the_weights_of_an_undisturbed_one(
    start: Start, train: Callable[..., Outcome]
) -> None:
    undisturbed = train("a")
    assert undisturbed.code == 0, undisturbed.message

    killed = start("b")
    killed.until_step(8)
    killed.send(signal.SIGKILL)
    killed.process.wait()

    preempted = start("b")
    preempted.until_step(12)
    preempted.send(signal.SIGTERM)
    outcome = preempted.outcome()
    assert outcome.code == 75
    assert "Going on from the checkpoint of step 5." in outcome.log
    assert outcome.finished["preempted"] is True
    saved = [
        int(event["checkpoint_step"]) for event in outcome.events if "checkpoint_step" in event
    ]

    last = train("b")
    assert last.code == 0, last.message
    assert f"Going on from the checkpoint of step {saved[-1]}." in last.log
    assert last.losses[-1] == undisturbed.losses[-1]
    assert last.weights_digest == undisturbed.weights_digest


def test_ctrl_c_cancels(start: Start) -> None:
    worker = start()
    worker.until_step(2)
    worker.send(signal.SIGINT)
    outcome = worker.outcome()
    assert outcome.code == 79
    assert outcome.finished["cancelled"] is True


def test_a_wrong_spec_ends_before_torch_is_loaded(start: Start) -> None:
    worker = start(hyperparameters={"epochs": -1})
    outcome = worker.outcome()
    assert outcome.code == 64
    assert "hyperparameters.epochs is -1.0" in outcome.message
    assert "torch" not in worker.errors()
