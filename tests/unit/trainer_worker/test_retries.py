"""What is trained stays trained: a later stage that fails is done again by itself, with the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.run import training
from services.trainer.run.trainers.common import GraftTrainer
from tests.unit.trainer_worker.support import Outcome

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
# Seven steps in epochs of five: the last checkpoint lies within an epoch.
STEPS = {"max_steps": 7, "micro_batch_size": 10}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1}},
    "adalora": {"adalora": {}},
    "pissa": {"pissa": {"rank": 4}},
    "ia3": {"ia3": {}},
}


def stages(outcome: Outcome) -> list[str]:
    """The stages that were reported."""
    return [
        event["stage"].removeprefix("JOB_STAGE_") for event in outcome.events if "stage" in event
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_result_that_cannot_be_saved_is_saved_by_the_next_attempt_without_training(
    train: Train, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    changes: dict[str, Any] = {"hyperparameters": STEPS, "method": {"lora": None} | METHODS[method]}

    def broken(*_: object) -> None:
        raise RuntimeError("the volume went away")

    with monkeypatch.context() as patched:
        patched.setattr(training, "store_result", broken)
        failed = train("disturbed", **changes)
    assert failed.code == 70
    assert "the volume went away" in failed.message
    assert stages(failed)[-1] == "SAVING"
    again = train("disturbed", **changes)
    assert again.code == 0, again.message
    assert again.losses == []
    assert "All 7 steps are trained" in again.log
    undisturbed = train("undisturbed", **changes)
    assert len(undisturbed.losses) == 7
    assert again.weights_digest == undisturbed.weights_digest
    assert figures(again) == figures(undisturbed)


def test_an_evaluation_that_fails_after_the_training_is_done_by_the_next_attempt_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "hyperparameters": STEPS,
        "dataset": {"eval_fraction": 0.1},
    }

    def broken(*_: object) -> None:
        raise RuntimeError("the card fell off the bus")

    with monkeypatch.context() as patched:
        patched.setattr(GraftTrainer, "measure_after", broken)
        failed = train("disturbed", **changes)
    assert failed.code == 70
    assert stages(failed)[-1] == "EVALUATING"
    again = train("disturbed", **changes)
    assert (again.code, again.losses) == (0, []), again.message
    assert figures(again) == figures(train("undisturbed", **changes))


def figures(outcome: Outcome) -> str:
    """What the lineage says of the run, without how long it took."""
    text = (outcome.work_dir / "result" / "commit_request.json").read_text("utf-8")
    return text[text.index('"metrics"') : text.index("}", text.index('"metrics"'))]


def test_a_result_that_was_lost_with_everything_after_the_last_step_is_made_again(
    train: Train,
) -> None:
    first = train(hyperparameters=STEPS)
    digest = first.weights_digest
    shutil.rmtree(Path(first.work_dir) / "result")
    again = train(hyperparameters=STEPS)
    assert (again.code, again.losses) == (0, [])
    assert again.weights_digest == digest
