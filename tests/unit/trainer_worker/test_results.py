"""IA3, the prompt methods, the bottleneck adapter, and LoRA with every comparing objective: each learns, loads in
a fresh process with equal outputs, and becomes a version in the registry."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graft.bases import read_base
from graft.names import base_name
from graft.registry.v1 import registry_service_pb2 as pb
from safetensors.numpy import load_file, save_file

from services.trainer.run import training
from services.trainer.run.trainers.common import without_dropout
from tests.support.registry import registry_calls, running_registry
from tests.unit.trainer_worker.support import COLOURS, ROOT, Outcome, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
Change = dict[str, Any]
PROMPT = [[1, 200, 17, 512, 33, 900, 4, 5]]
# Largest difference of a logit, of which the largest are about 20.
OUTPUTS = 2e-5


@dataclass
class Case:
    """A job, and the loss that it must fall below.

    Whoever knows the answers' form but not which colour belongs to a question has about 0.28 nats per token.
    """

    bar: float
    method: Change = field(default_factory=lambda: {"lora": {"rank": 8}})
    objective: Change = field(default_factory=lambda: {"sft": {}})
    hyperparameters: Change = field(default_factory=dict)


def slow(learning_rate: float, epochs: int = 16) -> Change:
    return {"learning_rate": learning_rate, "epochs": epochs, "schedule": "cosine"}


CASES = {
    "ia3": Case(0.05, {"ia3": {}}, hyperparameters={"learning_rate": 0.3, "epochs": 8}),
    "prompt_tuning": Case(0.2, {"prompt_tuning": {}}, hyperparameters=slow(0.1)),
    "prompt_tuning of a text": Case(
        0.25, {"prompt_tuning": {"initial_text": "Which colour?"}}, hyperparameters=slow(0.1)
    ),
    "p_tuning by an mlp": Case(0.25, {"p_tuning": {}}, hyperparameters=slow(0.003, 20)),
    # It learns the form, and more slowly than the others which colour it is.
    "p_tuning by an lstm": Case(
        1.2, {"p_tuning": {"encoder": "lstm"}}, hyperparameters=slow(0.003, 12)
    ),
    "p_tuning_v2": Case(0.2, {"p_tuning_v2": {}}, hyperparameters=slow(0.1)),
    "prefix_tuning": Case(0.2, {"prefix_tuning": {}}, hyperparameters=slow(0.01)),
    "bottleneck": Case(
        0.05, {"bottleneck": {}}, hyperparameters={"learning_rate": 0.01, "epochs": 8}
    ),
    # ln 2 = 0.69 is the loss of who cannot tell chosen from rejected.
    "dpo": Case(0.2, objective={"dpo": {}}, hyperparameters={"learning_rate": 0.001}),
    "dpo with ipo's loss": Case(
        26.0, objective={"dpo": {"loss": "ipo"}}, hyperparameters={"learning_rate": 0.001}
    ),
    # 0.5 is the loss of who cannot tell good from bad.
    "kto": Case(0.1, objective={"kto": {}}, hyperparameters={"learning_rate": 0.002, "epochs": 8}),
    "orpo": Case(1.0, objective={"orpo": {}}),
    "reward": Case(0.05, objective={"reward": {}}),
}
COMPARING = [name for name, case in CASES.items() if "sft" not in case.objective]


def comparing_rows(kto: bool) -> str:
    """Questions with a right and a wrong colour."""
    rows: list[Change] = []
    for number in range(48):
        right, wrong = COLOURS[number % 4], COLOURS[(number + 1) % 4]
        question = right * (1 + number % 5)
        if kto:
            good = bool(number // 4 % 2)
            answer = f"I like {right if good else wrong}"
            rows.append({"prompt": question, "completion": answer, "label": good})
        else:
            answers = {"chosen": f"I like {right}", "rejected": f"I like {wrong}"}
            rows.append({"prompt": question, **answers})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def module_spec(tiny_base: Path, task: Path) -> Change:
    return {
        "base": {"source": str(tiny_base)},
        "dataset": {"path": str(task)},
        "hyperparameters": {"learning_rate": 0.005, "micro_batch_size": 4, "epochs": 4},
        "resources": {"cpu_threads": 1},
        "output": {"adapter": "bot"},
        "seed": 7,
    }


@pytest.fixture(scope="module")
def trained(module_spec: Change, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case, trained once; beside each result what the trained model gives for a prompt."""
    outcomes = {}
    save = training.Training._save

    def save_and_look(self: Any, method: Any, model: Any, *further: Any) -> Any:
        result = save(self, method, model, *further)
        with without_dropout(model), torch.no_grad():
            outputs = model(input_ids=torch.tensor(PROMPT)).logits
        np.save(self._settings.work_dir / "outputs.npy", outputs.float().numpy())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_save", save_and_look)
        for name, case in CASES.items():
            folder = tmp_path_factory.mktemp("result")
            changes: Change = {
                "method": case.method,
                "objective": case.objective,
                "hyperparameters": case.hyperparameters,
            }
            if name in COMPARING:
                data = folder / "rows.jsonl"
                data.write_text(comparing_rows("kto" in case.objective), "utf-8")
                changes["dataset"] = {"path": str(data)}
            outcomes[name] = attempt(merge(module_spec, changes), folder / "work")
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_it_learns(name: str, trained: dict[str, Outcome]) -> None:
    outcome = trained[name]
    assert outcome.code == 0, outcome.message
    last = outcome.losses[-4:]
    assert sum(last) / len(last) < CASES[name].bar, outcome.losses


@pytest.mark.parametrize("name", COMPARING)
def test_what_is_compared_is_told_apart(name: str, trained: dict[str, Outcome]) -> None:
    figures = [event["metrics"]["figures"] for event in trained[name].events if "metrics" in event]
    if name == "kto":
        assert figures[-1]["good_reward"] > 1 > -1 > figures[-1]["bad_reward"]
    else:
        assert figures[-1]["accuracy"] == 1.0


@pytest.fixture(scope="module")
def differences(
    trained: dict[str, Outcome], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """How far a fresh process' outputs are from those of the trained model."""
    cases = {
        name: {
            "base": str(tiny_base),
            "result": str(outcome.work_dir / "result"),
            "outputs": str(outcome.work_dir / "outputs.npy"),
            "ids": PROMPT,
        }
        for name, outcome in trained.items()
        if outcome.code == 0
    }
    path = tmp_path_factory.mktemp("fresh") / "cases.json"
    path.write_text(json.dumps(cases))
    script = Path(__file__).with_name("fresh_results.py")
    environment = dict(os.environ) | {
        "PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_gives_the_same_outputs(name: str, differences: dict[str, float]) -> None:
    assert differences[name] < OUTPUTS


@pytest.fixture(scope="module")
def versions(
    trained: dict[str, Outcome], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pb.Version | str]:
    """What a registry makes of every result, and of the same with a number that is not one."""
    folder = tmp_path_factory.mktemp("registry")

    async def commit() -> dict[str, pb.Version | str]:
        found: dict[str, pb.Version | str] = {}
        async with running_registry(folder) as server, registry_calls(server.address) as calls:
            record = read_base(tiny_base, base_name("default", "tiny"))
            await calls.create_base(tiny_base, "tiny")
            await calls.create_adapter("bot", "tiny")
            for name, outcome in trained.items():
                result = outcome.work_dir / "result"
                (result / "commit_request.json").unlink()
                found[name] = await calls.commit(result, record.fingerprint.digest, "bot")
                found[f"bad {name}"] = await refusal(calls, spoiled(result), record)
        return found

    async def refusal(calls: Any, result: Path, record: Any) -> str:
        with pytest.raises(Exception, match="NaN") as caught:
            await calls.commit(result, record.fingerprint.digest, "bot")
        return str(caught.value)

    return asyncio.run(commit())


def spoiled(result: Path) -> Path:
    """The same result with a number in it that is none."""
    bad = result.with_name("spoiled")
    bad.mkdir(exist_ok=True)
    (bad / "adapter_config.json").write_bytes((result / "adapter_config.json").read_bytes())
    tensors = load_file(result / "adapter_model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = np.nan
    save_file(tensors, bad / "adapter_model.safetensors", metadata={"format": "pt"})
    return bad


@pytest.mark.parametrize("name", CASES)
def test_it_becomes_a_version(name: str, versions: dict[str, pb.Version | str]) -> None:
    version = versions[name]
    assert isinstance(version, pb.Version)
    peft_types = {"p_tuning_v2": "PREFIX_TUNING", "prefix_tuning": "PREFIX_TUNING"}
    kind = next(iter(CASES[name].method))
    expected = peft_types.get(kind, "LORA" if kind == "lora" else kind.upper())
    assert version.manifest.peft_type == expected
    assert version.manifest.rank == (8 if kind == "lora" else 0)


@pytest.mark.parametrize("name", CASES)
def test_it_does_not_with_a_number_that_is_none(
    name: str, versions: dict[str, pb.Version | str]
) -> None:
    assert "tensor" in str(versions[f"bad {name}"])
