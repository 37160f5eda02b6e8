"""Memory that runs out: the step is done again in smaller pieces, learns the same, and nothing is lost."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import Trainer

from services.trainer.run.exits import OutOfMemoryError, PreemptedError, is_out_of_memory
from services.trainer.run.memory import Pieces
from services.trainer.run.trainers.sft import SupervisedTrainer
from tests.support.models import make_base
from tests.unit.trainer_worker.support import COLOURS, Outcome, WorkerProcess, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
# Sequences that a row becomes; each objective's settings.
OBJECTIVES: dict[str, tuple[int, dict[str, Any]]] = {
    "sft": (1, {}),
    "dpo": (2, {"sft_weight": 0.3}),
    "kto": (1, {}),
    "orpo": (2, {}),
    "reward": (2, {}),
    "distillation": (1, {}),
    "grpo": (1, {"rewards": [{"regex": {"pattern": "e"}}], "generations": 4, "max_completion_tokens": 4}),
}  # fmt: skip


def _at_length(kind: str) -> Any:
    """In the long form of the tests alone."""
    return pytest.param(kind, marks=pytest.mark.soak)


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Eleven rows of unlike length, so that batches are padded and the last one is not full."""
    rows: list[dict[str, Any]] = []
    for number in range(12 if kind == "grpo" else 11):
        right, wrong = COLOURS[number % 4], COLOURS[(number + 1) % 4]
        prompt = f"{number} {right * (1 + number % 5)}"
        good, bad = f"I like {right}", f"No, {wrong} " * (1 + number % 3)
        match kind:
            case "kto":
                rows.append({"prompt": prompt, "completion": good, "label": number % 2 == 0})
            case "dpo" | "orpo" | "reward":
                rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
            case "grpo":
                rows.append({"prompt": prompt})
            case _:
                rows.append({"prompt": prompt, "completion": bad})
    return rows


@pytest.fixture
def teach(tiny_base: Path, tmp_path: Path) -> Train:
    """Trains with an objective on rows in their own order; keyword arguments change hyperparameters."""

    def run(
        kind: str,
        folder: str,
        method: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        **hyper: Any,
    ) -> Outcome:
        data = tmp_path / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)), "utf-8")
        settings = dict(OBJECTIVES[kind][1])
        if kind == "distillation":
            teacher = tmp_path / "teacher"
            if not teacher.exists():
                make_base(teacher, layers=1, seed=5)
            settings["teacher"] = str(teacher)
        spec = {
            "base": {"source": str(tiny_base)},
            "dataset": {"path": str(data)},
            "method": {"lora": {"rank": 4, "dropout": 0.1}},
            "objective": {kind: settings},
            "hyperparameters": {"learning_rate": 0.01, "epochs": 1, "group_by_length": False},
            "resources": {"cpu_threads": 1},
            "output": {"adapter": "bot"},
            "seed": 7,
        }
        changes = {"hyperparameters": hyper, "method": method or {}}
        return attempt(merge(merge(spec, changes), more or {}), tmp_path / folder)

    return run


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """From a step on memory is enough for so many sequences; more fail once their gradients are there."""

    def limit(sequences: int, from_step: int = 1) -> list[int]:
        real, failed = Trainer.training_step, list[int]()

        def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            loss = real(self, model, inputs, *rest)
            held = next(value for value in inputs.values() if isinstance(value, torch.Tensor))
            if len(held) > sequences and self.state.global_step + 1 >= from_step:
                failed.append(self.state.global_step + 1)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss

        monkeypatch.setattr(Trainer, "training_step", step)
        return failed

    return limit


def weights(outcome: Outcome) -> dict[str, Any]:
    tensors = load_file(outcome.work_dir / "result" / "adapter_model.safetensors")
    return dict(tensors)


def figures(outcome: Outcome) -> dict[str, float]:
    request = json.loads((outcome.work_dir / "result" / "commit_request.json").read_text())
    return dict(request["lineage"]["metrics"])


def norms(outcome: Outcome) -> list[float]:
    return [event["metrics"]["grad_norm"] for event in outcome.events if "metrics" in event]


def same(ours: Outcome, theirs: Outcome, tolerance: float = 2e-4) -> bool:
    mine, others = weights(ours), weights(theirs)
    return all(abs(mine[name] - others[name]).max() < tolerance for name in others)


@pytest.mark.parametrize(
    "kind",
    ["sft", "dpo", "kto", "grpo", *map(_at_length, ("orpo", "reward", "distillation"))],
)
def test_it_ends_with_the_bits_of_a_run_that_had_the_smaller_batch_from_the_start(
    teach: Train, room_for: Callable[..., list[int]], kind: str
) -> None:
    small = teach(kind, "small", micro_batch_size=2, gradient_accumulation_steps=2)
    failed = room_for(2 * OBJECTIVES[kind][0])
    halved = teach(kind, "halved", micro_batch_size=4, gradient_accumulation_steps=1)
    assert halved.code == 0, halved.message
    assert failed == [1]
    assert halved.weights_digest == small.weights_digest
    assert halved.losses == pytest.approx(small.losses, rel=1e-6)
    assert "Memory ran out in step 1 (CUDA out of memory" in halved.log
    assert "micro_batch_size 2 instead of 4 and 2 times the accumulation" in halved.log
    assert figures(halved)["micro_batch_size"] == 2
    assert figures(halved)["out_of_memory"] == 1


@pytest.mark.parametrize(
    "kind", ["dpo", "kto", "orpo", "reward", *map(_at_length, ("sft", "distillation"))]
)
def test_accumulated_batches_are_one_large_batch_whatever_the_rows_lengths(
    teach: Train, kind: str
) -> None:
    # The second step has three rows, in batches of two and one. The divergence that KTO measures against is
    # one batch's own, so there the first step is compared.
    hyper = {"max_steps": 1 if kind == "kto" else 2}
    plain: dict[str, Any] = {"lora": {"dropout": 0}}
    large = teach(kind, "large", plain, micro_batch_size=8, **hyper)
    small = teach(kind, "small", plain, micro_batch_size=2, gradient_accumulation_steps=4, **hyper)
    assert small.code == 0, small.message
    assert small.losses == pytest.approx(large.losses, rel=1e-4)
    assert norms(small) == pytest.approx(norms(large), rel=1e-3)


def test_in_mid_training_only_the_step_is_done_again(
    teach: Train, room_for: Callable[..., list[int]]
) -> None:
    plain: dict[str, Any] = {"lora": {"dropout": 0}}
    hyper = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 3}
    whole = teach("sft", "whole", plain, **hyper)
    failed = room_for(1, from_step=3)
    halved = teach("sft", "halved", plain, **hyper)
    assert halved.code == 0, halved.message
    assert failed == [3, 3]  # Four rows are too many, then two.
    assert len(halved.losses) == len(whole.losses)  # No step was reported twice.
    assert halved.losses == pytest.approx(whole.losses, rel=1e-3)
    assert same(halved, whole)
    assert figures(halved)["tokens"] == figures(whole)["tokens"]
    assert figures(halved)["micro_batch_size"] == 1


@pytest.mark.parametrize(
    ("kind", "hyper"),
    [
        ("sft", {"packing": True, "max_length_tokens": 64, "micro_batch_size": 3}),
        pytest.param(
            "sft", {"group_by_length": True, "micro_batch_size": 5}, marks=pytest.mark.soak
        ),
        ("dpo", {"group_by_length": True, "micro_batch_size": 5}),
    ],
)
def test_whatever_makes_a_batch_its_rows_stay_the_same(
    teach: Train, room_for: Callable[..., list[int]], kind: str, hyper: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"lora": {"dropout": 0}}
    whole = teach(kind, "whole", plain, epochs=2, **{"group_by_length": False, **hyper})
    failed = room_for(2, from_step=2)
    halved = teach(kind, "halved", plain, epochs=2, **{"group_by_length": False, **hyper})
    assert halved.code == 0, halved.message
    assert failed
    assert halved.losses == pytest.approx(whole.losses, rel=2e-3)
    assert same(halved, whole)


def test_streamed_rows_are_taken_again_too(
    teach: Train, room_for: Callable[..., list[int]]
) -> None:
    plain: dict[str, Any] = {"lora": {"dropout": 0}}
    hyper = {"micro_batch_size": 4, "max_steps": 4}
    streaming: dict[str, Any] = {"dataset": {"streaming": True}}
    whole = teach("sft", "whole", plain, streaming, **hyper)
    assert room_for(2, from_step=2) == []
    halved = teach("sft", "halved", plain, streaming, **hyper)
    assert "Memory ran out in step 2" in halved.log
    assert halved.losses == pytest.approx(whole.losses, rel=1e-3)


def test_a_resumed_run_goes_on_in_the_same_pieces_to_the_same_bits(
    teach: Train, room_for: Callable[..., list[int]]
) -> None:
    more = {"checkpointing": {"every_steps": 4, "keep": 9}}
    hyper = {"micro_batch_size": 4, "epochs": 3}
    room_for(2, from_step=2)
    whole = teach("sft", "work", None, more, **hyper)
    assert whole.log.count("Memory ran out") == 1
    shutil.rmtree(whole.work_dir / "result")
    for later in sorted((whole.work_dir / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    resumed = teach("sft", "work", None, more, **hyper)
    assert "Going on from the checkpoint of step 4." in resumed.log
    assert "Memory ran out" not in resumed.log  # It is known from the checkpoint.
    assert resumed.losses == whole.losses[4:]
    assert resumed.weights_digest == whole.weights_digest
    assert figures(resumed)["micro_batch_size"] == 2


def test_with_a_single_row_at_a_time_the_job_fails_and_says_what_helps(
    teach: Train, room_for: Callable[..., list[int]]
) -> None:
    room_for(0)
    outcome = teach("sft", "work", micro_batch_size=4)
    assert outcome.code == 66
    assert outcome.finished["failure_cause"] == "FAILURE_CAUSE_OUT_OF_MEMORY"
    assert "in step 1 with a single sequence at a time" in outcome.message
    assert "Turn on hyperparameters.gradient_checkpointing" in outcome.message
    assert "max_length_tokens (now 1024)" in outcome.message
    assert "micro_batch_size" not in outcome.message  # That is no help any more.


def test_the_words_of_torchs_allocators_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_an_allocation_that_the_cpu_refuses_is_survived(
    teach: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SupervisedTrainer.batch_loss

    def greedy(self: Any, model: Any, inputs: Any, count: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            torch.empty(2**52, dtype=torch.uint8)
        return real(self, model, inputs, count)

    monkeypatch.setattr(SupervisedTrainer, "batch_loss", greedy)
    outcome = teach("sft", "work", micro_batch_size=4)
    assert outcome.code == 0, outcome.message
    assert "Memory ran out in step 1 ([enforce fail at alloc_cpu.cpp" in outcome.log


def no_room_to_evaluate(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    real = SupervisedTrainer.eval_loss

    def evaluate(self: Any, inputs: Any) -> Any:
        if len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, inputs)

    monkeypatch.setattr(SupervisedTrainer, "eval_loss", evaluate)


def test_an_evaluation_without_room_is_done_in_smaller_batches(
    teach: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"dataset": {"eval_fraction": 0.4}}
    usual = teach("sft", "usual", None, more, micro_batch_size=4, max_steps=2)
    no_room_to_evaluate(monkeypatch, 1)
    outcome = teach("sft", "work", None, more, micro_batch_size=4, max_steps=2)
    assert outcome.code == 0, outcome.message
    assert outcome.weights_digest == usual.weights_digest
    assert figures(outcome)["eval_loss"] == pytest.approx(figures(usual)["eval_loss"], rel=1e-4)
    assert "The evaluation begins again with 1 rows at a time instead of 2." in outcome.log


def test_an_evaluation_without_any_room_does_not_lose_the_training(
    teach: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room_to_evaluate(monkeypatch, 0)
    more = {"dataset": {"eval_fraction": 0.4}}
    outcome = teach("sft", "work", None, more, micro_batch_size=4, max_steps=2)
    assert outcome.code == 0, outcome.message
    assert "eval_loss" not in figures(outcome)
    assert "It is left out; the training goes on, and its result is not lost." in outcome.log


def test_answers_that_cannot_be_sampled_at_once_are_sampled_in_parts(
    teach: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import GRPOTrainer

    real, sampled = GRPOTrainer._generate_single_turn, list[int]()

    def sample(self: Any, prompts: Any, *rest: Any, **named: Any) -> Any:
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sampled.append(len(prompts))
        return real(self, prompts, *rest, **named)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", sample)
    outcome = teach("grpo", "work", micro_batch_size=8, max_steps=1)
    assert outcome.code == 0, outcome.message
    assert sampled == [2, 2, 2, 2]
    assert "Its answers are sampled again, 2 at a time instead of 4." in outcome.log


def test_where_a_step_cannot_be_done_again_the_next_attempt_takes_less(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(PreemptedError, match="from the last checkpoint with micro_batch_size 4"):
        Pieces(8, said.append, tmp_path).restart("in step 3", "CUDA out of memory.", "")
    again = Pieces(8, said.append, tmp_path)
    assert again.size() == 4
    for _ in range(2):
        with pytest.raises(PreemptedError):
            Pieces(8, said.append, tmp_path).restart("in step 3", "CUDA out of memory.", "")
    with pytest.raises(OutOfMemoryError, match="Buy more"):
        Pieces(8, said.append, tmp_path).restart("in step 3", "CUDA out of memory.", "Buy more.")


@pytest.mark.soak
def test_a_process_that_gets_no_more_memory_from_the_system_goes_on_in_smaller_pieces(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    data = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{n}", "completion": "red blue " * 150} for n in range(96)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    worker = start(
        dataset={"path": str(data)},
        hyperparameters={"micro_batch_size": 96, "max_length_tokens": 512, "max_steps": 4},
    )
    worker.until_step(1)
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    _, most = resource.prlimit(worker.process.pid, resource.RLIMIT_AS)
    limit = 1024 * held + 150 * 2**20
    resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (limit, most))
    outcome = worker.outcome()
    assert outcome.code == 0, worker.errors()
    assert "can't allocate memory" in outcome.log
    assert len(outcome.losses) == 4
    assert figures(outcome)["micro_batch_size"] < 96
