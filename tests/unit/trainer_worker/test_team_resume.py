"""Several processes go on from a checkpoint as if they had never stopped, also when they are then more or fewer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from torch._C._distributed_c10d import HashStore

from services.trainer.run.exits import ExitCode, PeerFailedError, PeerLostError, exit_of
from services.trainer.run.joined_team import JoinedTeam
from tests.support.pairs import Processes, weights
from tests.unit.trainer_worker.support import Outcome, attempt, merge
from tests.unit.trainer_worker.test_devices import SHARDINGS, choices, needs_deepspeed

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
STEP = 5


@pytest.fixture
def stopped(small: dict[str, Any]) -> dict[str, Any]:
    """A job with dropout, which checkpoints in the middle of an epoch."""
    changes: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.2}},
        "checkpointing": {"every_steps": STEP, "keep": 5},
    }
    return merge(small, changes)


def goes_on(whole: Path, work: Path) -> Path:
    """A work folder with the checkpoint of a step and nothing else."""
    name = f"checkpoints/step-{STEP:09d}"
    shutil.copytree(whole / name, work / name)
    return work


@pytest.mark.parametrize("sharding", choices("ddp"))
def test_two_that_go_on_end_with_the_very_same_weights(
    two: Processes, stopped: dict[str, Any], tmp_path: Path, sharding: str
) -> None:
    job = merge(stopped, {"resources": {"sharding": SHARDINGS[sharding]}})
    whole = first(two.train(job, tmp_path / "whole"))
    resumed = first(two.train(job, goes_on(tmp_path / "whole", tmp_path / "resumed")))
    assert f"Going on from the checkpoint of step {STEP}." in resumed.log
    assert resumed.losses == whole.losses[STEP:]
    assert resumed.weights_digest == whole.weights_digest


@pytest.mark.parametrize(
    ("sharding", "method"),
    [
        ("fsdp", "lora"),
        pytest.param("fsdp", "full", marks=pytest.mark.soak),
        pytest.param("replicated", "lora", marks=pytest.mark.soak),
        pytest.param("replicated", "full", marks=pytest.mark.soak),
    ],
)
def test_one_goes_on_where_two_stopped_and_two_where_one_did(
    two: Processes, small: dict[str, Any], tmp_path: Path, sharding: str, method: str
) -> None:
    changes: dict[str, Any] = {
        "checkpointing": {"every_steps": STEP, "keep": 5},
        "resources": {"sharding": SHARDINGS[sharding]},
        "hyperparameters": {"gradient_accumulation_steps": 2},
    }
    job = merge(small, changes | {"hyperparameters": {"epochs": 4, **changes["hyperparameters"]}})
    if method == "full":
        job |= {"method": {"full": {}}, "output": {"base": "made"}}
    both = two.train(job, tmp_path / "both")
    one = attempt(job, goes_on(tmp_path / "both", tmp_path / "one"))
    assert "each of 1 processes takes 4" in one.log
    assert one.losses == pytest.approx(both[0].losses[STEP:], rel=1e-4)
    assert weights(one) == pytest.approx(weights(both[0]), rel=1e-3, abs=2e-5)

    alone = attempt(job, tmp_path / "alone")
    joined = two.train(job, goes_on(tmp_path / "alone", tmp_path / "joined"))
    assert joined[0].losses == pytest.approx(alone.losses[STEP:], rel=1e-4)
    assert weights(joined[0]) == pytest.approx(weights(alone), rel=1e-3, abs=2e-5)


def test_a_step_that_so_many_cannot_share_is_refused(
    two: Processes, stopped: dict[str, Any], tmp_path: Path
) -> None:
    alone = attempt(stopped, tmp_path / "alone")
    assert alone.code == 0, alone.message
    both = two.train(stopped, goes_on(tmp_path / "alone", tmp_path / "both"))
    assert [one.code for one in both] == [64, 64]
    assert "have 1 batches, which 2 processes cannot share" in both[0].message


@needs_deepspeed
def test_zero_goes_on_with_as_many_processes_as_before(
    two: Processes, stopped: dict[str, Any], tmp_path: Path
) -> None:
    job = merge(stopped, {"resources": {"sharding": SHARDINGS["zero2"]}})
    first(two.train(job, tmp_path / "both"))
    one = attempt(job, goes_on(tmp_path / "both", tmp_path / "one"))
    assert one.code == 64
    assert "2 processes" in one.message


def first(outcomes: list[Outcome]) -> Outcome:
    assert not any(one.code for one in outcomes), [one.message for one in outcomes]
    return outcomes[0]


@pytest.mark.parametrize("sharding", [pytest.param("replicated", marks=pytest.mark.soak), "fsdp"])
def test_the_best_checkpoint_is_the_result(
    two: Processes, small: dict[str, Any], tmp_path: Path, sharding: str
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    # What is learned by heart makes other answers less likely.
    held_out.write_text(json.dumps({"instruction": "red", "output": "0 1 2 3"}) + "\n", "utf-8")
    changes: dict[str, Any] = {
        "dataset": {"eval_sources": [{"path": str(held_out)}]},
        "checkpointing": {"every_steps": STEP, "keep_best": 1, "use_best": True},
        "hyperparameters": {"epochs": 3, "learning_rate": 0.05, "schedule": "constant"},
        "resources": {"sharding": SHARDINGS[sharding]},
    }
    outcome = first(two.train(merge(small, changes), tmp_path / "work"))
    said = re.search(r"The result is the checkpoint of step (\d+)", outcome.log)
    assert said is not None
    name = "adapter_model.safetensors"
    kept = outcome.work_dir / "checkpoints" / f"step-{int(said[1]):09d}" / name
    result, best = load_file(outcome.work_dir / "result" / name), load_file(kept)
    assert all((result[key] == best[key]).all() for key in result)


def test_why_one_fails_is_what_all_say(tmp_path: Path) -> None:
    store = HashStore()
    failing, other = JoinedTeam(1, 2, store), JoinedTeam(0, 2, store)
    lost = PeerLostError("gone")
    assert other.cause_of(lost) is lost
    failing.fail(ExitCode.OUT_OF_MEMORY, "Memory ran out in step 7.")
    cause = other.cause_of(lost)
    assert isinstance(cause, PeerFailedError)
    code, finished = exit_of(cause, tmp_path)
    assert code is ExitCode.OUT_OF_MEMORY
    assert finished.message == "Process 1 of 2 failed: Memory ran out in step 7."


def test_an_end_that_nobody_explains_counts_as_lost(tmp_path: Path) -> None:
    code, finished = exit_of(PeerLostError("gone"), tmp_path)
    assert code is ExitCode.PREEMPTED
    assert not finished.preempted
