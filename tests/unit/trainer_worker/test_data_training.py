"""Data sets train as they are: several of them, from the Hub, cleaned, with everything of it in the lineage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft.digests import is_digest
from huggingface_hub import constants

from tests.support.hub import Repository, running_hub
from tests.unit.trainer_worker.support import Outcome

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
SHARED = Path(__file__).parents[4] / "shared/data"
Train = Callable[..., Outcome]


def lineage(outcome: Outcome) -> dict[str, Any]:
    """What the version will say of where it came from."""
    text = (outcome.work_dir / "result/commit_request.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)["lineage"]
    return found


def test_sets_from_the_hub_and_from_here_are_mixed_and_cleaned_and_in_the_lineage(
    train: Train, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"q": f"red {number % 4}", "a": "I like {{colour}}"} for number in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        repository = hub.repositories["datasets/org/set"] = Repository()
        commit = repository.commit({"data/train.jsonl": lines, "data/test.jsonl": b"not json"})
        sources = [
            {"path": str(task), "weight": 3},
            {
                "path": "org/set",
                "weight": 1,
                "columns": {"instruction": "q", "output": "a"},
                "placeholders": {"colour": "red"},
            },
        ]
        dataset = {"path": "", "sources": sources, "cleaning": {"dedupe": True}}
        outcome = train(dataset=dataset, hyperparameters={"max_steps": 2})
    assert outcome.code == 0, outcome.message
    found = lineage(outcome)
    assert found["sources"] == [f"hf://org/set@{commit}"]
    assert is_digest(found["data_digest"] if "data_digest" in found else found["dataDigest"])
    # Of 48 and 8 rows 20 and 4 are different; with weights 3 and 1 the second set gives 7.
    assert found["metrics"]["rows_removed_dedupe"] == 32
    assert int(found["dataRows"]) == 27
    assert "dedupe: 32 rows left out" in outcome.log


def test_an_attempt_that_goes_on_reads_what_the_first_one_fetched(
    train: Train, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        repository = hub.repositories["datasets/org/set"] = Repository()
        repository.commit({"rows.jsonl": task.read_bytes()})
        changes = {"dataset": {"path": "hf://org/set"}, "hyperparameters": {"max_steps": 1}}
        assert train(**changes).code == 0
        repository.commit({"rows.jsonl": b"not json"})
        hub.requests.clear()
        again = train(**changes)
    assert again.code == 0, again.message
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    ["alpaca_en_demo.json", "identity.json", "glaive_toolcall_en_demo.json", "c4_demo.jsonl"],
)
def test_the_public_sets_train_as_they_are(train: Train, name: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    outcome = train(
        dataset={"path": str(SHARED / name), "maxRows": 40},
        hyperparameters={"max_steps": 1, "micro_batch_size": 2, "max_length_tokens": 1024},
    )
    assert outcome.code == 0, outcome.message
