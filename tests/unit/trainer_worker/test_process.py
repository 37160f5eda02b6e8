"""A worker's life as a process: killed and started again, preempted, interrupted, refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from tests.unit.trainer_worker.support import Event, Outcome, WorkerProcess

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Start = Callable[..., WorkerProcess]


def test_a_killed_or_preempted_worker_ends_with_the_weights_of_an_undisturbed_one(
    start: Start, train: Callable[..., Outcome]
) -> None:
    # So many steps that neither signal comes after the last one.
    long = {"hyperparameters": {"epochs": 8}}
    undisturbed = train("a", **long)
    assert undisturbed.code == 0, undisturbed.message

    killed = start("b", **long)
    # Checkpoints are written beside the steps: one of which it has not said so may not be there.
    killed.until_checkpoint(5)
    killed.send(signal.SIGKILL)
    killed.process.wait()
    stored = checkpoints(killed.events)[-1]

    preempted = start("b", **long)
    preempted.until_checkpoint(stored + 5)
    preempted.send(signal.SIGTERM)
    outcome = preempted.outcome()
    assert outcome.code == 75
    assert resumed_from(outcome) >= stored
    assert outcome.finished["preempted"] is True

    last = train("b", **long)
    assert last.code == 0, last.message
    assert resumed_from(last) == checkpoints(outcome.events)[-1]
    assert last.losses[-1] == undisturbed.losses[-1]
    assert last.weights_digest == undisturbed.weights_digest


def checkpoints(events: list[Event]) -> list[int]:
    """The steps of which it said that their checkpoint is stored."""
    return [int(event["checkpoint_step"]) for event in events if "checkpoint_step" in event]


def resumed_from(outcome: Outcome) -> int:
    """The step of the checkpoint that it said it goes on from."""
    said = re.findall(r"Going on from the checkpoint of step (\d+)\.", outcome.log)
    assert said, outcome.log
    return int(said[-1])


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
