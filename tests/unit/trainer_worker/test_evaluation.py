"""A job's model is measured before, while and after it is trained, and what follows from that happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graft.registry.v1 import registry_service_pb2 as pb

from services.trainer.formats import Place
from services.trainer.run.evaluating.answers import AnswerWriter, Question
from services.trainer.spec.evaluation import Answers
from services.trainer.tokens import end_token_ids, load_tokenizer
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.unit.trainer_worker.support import COLOURS, Outcome, attempt

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
ADAPTER = "namespaces/default/adapters/bot"
FIGURES = ["token_accuracy", "exact_match", "bleu", "rouge_1", "rouge_2", "rouge_l"]


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Questions to learn by heart, some of them held out, and a text that is forgotten over them."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [
        {"instruction": colour * (1 + number), "output": f"I like {colour} and no other"}
        for number in range(5)
        for colour in COLOURS
    ]
    text = [{"text": "the quick brown fox jumps over the lazy dog " * number} for number in (1, 2)]
    return {
        "train": write_rows(folder / "train.jsonl", rows),
        "held_out": write_rows(folder / "held_out.jsonl", rows[4:12]),
        "text": write_rows(folder / "text.jsonl", text),
    }


def small_job(base: Path, data: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "base": {"source": str(base)},
        "dataset": {"path": data["train"], "eval_sources": [{"path": data["held_out"]}]},
        "method": {"lora": {"rank": 16, "dropout": 0.1}},
        "hyperparameters": {"max_steps": 4, "learning_rate": 0.01, "micro_batch_size": 4},
        "checkpointing": {"every_steps": 1000},
        "resources": {"cpu_threads": 1},
        "output": {"adapter": "bot"},
        "seed": 7,
        **changes,
    }


@pytest.fixture(scope="module")
def learned(
    tiny_base: Path, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """A job that learns its rows by heart and measures everything."""
    spec = small_job(tiny_base, data)
    spec["dataset"]["regression_sources"] = [{"path": data["text"]}]
    spec["hyperparameters"] = {"max_steps": 40, "learning_rate": 0.01, "micro_batch_size": 10}
    spec["evaluation"] = {
        "every_steps": 20,
        "metrics": FIGURES,
        "answers": {"max_new_tokens": 24, "samples": 8, "batch_size": 3},
        "best_metric": "exact_match",
        "regression": {"limit": 0.001},
    }
    outcome = attempt(spec, tmp_path_factory.mktemp("learned") / "work")
    assert outcome.code == 0, outcome.message
    return outcome


def lineage_figures(outcome: Outcome) -> dict[str, float]:
    request = json.loads((outcome.work_dir / "result/commit_request.json").read_text())
    return dict(request["lineage"]["metrics"])


def report(outcome: Outcome) -> str:
    return (outcome.work_dir / "result/evaluation.md").read_text("utf-8")


def test_a_model_that_knows_the_answers_has_the_best_figures(learned: Outcome) -> None:
    figures = lineage_figures(learned)
    assert figures["eval_exact_match"] == figures["eval_token_accuracy"] == 1.0
    assert figures["eval_bleu"] == pytest.approx(100.0)
    assert [figures[f"eval_rouge_{name}"] for name in ("1", "2", "l")] == [1.0, 1.0, 1.0]
    assert figures["eval_perplexity"] == pytest.approx(2.718281828 ** figures["eval_loss"])
    assert figures["before_eval_exact_match"] == figures["before_eval_token_accuracy"] == 0.0
    assert figures["before_eval_loss"] > 5 > 0.05 > figures["eval_loss"]
    assert figures["best_step"] in (20, 40)


def test_the_figures_are_live_and_those_of_the_result_come_last(learned: Outcome) -> None:
    reports = [event["metrics"] for event in learned.events if "metrics" in event]
    evaluated = [one for one in reports if "eval_exact_match" in one.get("figures", {})]
    assert [int(one["step"]) for one in evaluated] == [20, 40, 40]
    last = evaluated[-1]
    assert last["figures"]["regression"] == lineage_figures(learned)["regression"]
    assert last["eval_loss"] == lineage_figures(learned)["eval_loss"]


def test_what_is_forgotten_is_said_with_both_numbers(learned: Outcome) -> None:
    figures = lineage_figures(learned)
    fall = figures["regression_loss"] - figures["before_regression_loss"]
    assert figures["regression"] == pytest.approx(fall)
    if fall > 0.001:
        line = next(line for line in learned.log.splitlines() if "forgotten" in line)
        assert f"{figures['before_regression_loss']:.6g}" in line
        assert f"{figures['regression_loss']:.6g}" in line


def test_the_report_shows_answers_of_before_and_after(learned: Outcome) -> None:
    text = report(learned)
    assert "| exact match | 0 | 1 |" in text
    sample = text.split("### ")[1]
    assert sample.startswith("eval_sources[0] held_out.jsonl, row 1\n")
    assert "<|im_start|>assistant" in sample.split("Right answer:")[0]
    before, after = sample.split("Right answer:")[1].split("Before:")[1].split("After:")
    assert "I like red and no other" in after
    assert "I like red and no other" not in before
    assert text.count("### ") == 8
    request = json.loads((learned.work_dir / "result/commit_request.json").read_text())
    assert "evaluation.md" in {file["path"] for file in request["files"]}


def test_answers_do_not_depend_on_what_shares_their_batch(
    learned: Outcome, tiny_base: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(tiny_base)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(base, str(learned.work_dir / "result"))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": colour * times}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for times, colour in enumerate(("red", "blue", "green"), 1)
    ]
    questions = [Question(Place("f", 1), ids, "", "") for ids in prompts]
    ends = end_token_ids(tokenizer, tiny_base)
    lines: list[str] = []
    writer = AnswerWriter(tokenizer, ends, Answers(max_new_tokens=24), lines.append)
    together = writer.write(model, questions)
    alone = [writer.write(model, [one])[0] for one in questions]
    assert len({len(ids) for ids in prompts}) > 1
    assert together == alone == [f"I like {c} and no other" for c in ("red", "blue", "green")]


def test_evaluation_leaves_no_trace_in_the_weights(
    tiny_base: Path, data: dict[str, str], tmp_path: Path
) -> None:
    measured = small_job(tiny_base, data)
    measured["dataset"]["regression_sources"] = [{"path": data["text"]}]
    measured["evaluation"] = {
        "every_steps": 1,
        "metrics": FIGURES,
        "answers": {"max_new_tokens": 2},
        "best_metric": "rouge_l",
    }
    plain = small_job(tiny_base, data, dataset={"path": data["train"]})
    one, other = attempt(measured, tmp_path / "one"), attempt(plain, tmp_path / "other")
    assert one.code == other.code == 0, one.message or other.message
    assert one.weights_digest == other.weights_digest
    assert sum("eval_loss" in event.get("metrics", {}) for event in one.events) == 5


def test_a_training_that_gets_no_better_ends_when_patience_does(
    tiny_base: Path, data: dict[str, str], tmp_path: Path
) -> None:
    spec = small_job(tiny_base, data)
    spec["hyperparameters"] |= {"max_steps": 50, "learning_rate": 1e-9}
    spec["checkpointing"] = {"every_steps": 2}
    spec["evaluation"] = {
        "every_steps": 2,
        "early_stopping": {"patience": 2, "min_improvement": 0.01},
    }
    outcome = attempt(spec, tmp_path / "work")
    assert outcome.code == 0, outcome.message
    # The first evaluation, after step 2, is what those of steps 4 and 6 are no better than.
    assert lineage_figures(outcome)["steps"] == 6
    assert "Stopping early after step 6: 2 evaluations in a row" in outcome.log
    digest = outcome.weights_digest
    # Its end was lost: what it goes on from is a checkpoint at which it had stopped.
    (outcome.work_dir / "result/commit_request.json").unlink()
    again = attempt(spec, tmp_path / "work")
    assert again.code == 0, again.message
    assert again.weights_digest == digest
    assert not any(
        "metrics" in event and event["metrics"].get("step", 0) == "7" for event in again.events
    )
    assert report(again) == report(outcome)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[tuple[str, RegistryCalls]]:
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
    ):
        yield server.address, calls


async def test_the_gate_moves_the_alias_only_when_all_holds(
    registry: tuple[str, RegistryCalls], tiny_base: Path, data: dict[str, str], tmp_path: Path
) -> None:
    address, calls = registry

    async def job(name: str, gate: list[str], steps: int, **regression: float) -> Outcome:
        spec = small_job(tiny_base, data, output={"adapter": "bot", "alias": "production"})
        spec["hyperparameters"] |= {"max_steps": steps}
        spec["dataset"]["regression_sources"] = [{"path": data["text"]}]
        spec["evaluation"] = {"gate": {"conditions": gate}, "regression": regression}
        environment = {"GRAFT_WORKER_JOB": f"namespaces/default/jobs/{name}"}
        done = await asyncio.to_thread(attempt, spec, tmp_path / name, address, environment)
        assert done.code == 0, done.message
        return done

    async def production() -> str:
        request = pb.GetAliasRequest(name=f"{ADAPTER}/aliases/production")
        return str((await calls.stub.GetAlias(request)).version)

    first = await job("first", ["loss <= @production", "perplexity < 1e30"], 6, limit=100.0)
    assert (first.message, await production()) == ("", f"{ADAPTER}/versions/1")
    worse = await job("worse", ["perplexity < 1e30", "loss <= @production"], 1)
    assert await production() == f"{ADAPTER}/versions/1"
    assert worse.finished["version"] == f"{ADAPTER}/versions/2"
    figures = [lineage_figures(one)["eval_loss"] for one in (worse, first)]
    assert "'eval_loss <= @production' does not hold" in worse.message
    assert all(f"{value:.4g}"[:4] in worse.message for value in figures)
    assert f"still names {ADAPTER}/versions/1" in worse.message
    assert worse.message in worse.log
    forgets = await job("forgets", [], 6, limit=-1000.0)
    assert "'regression <= -1000" in forgets.message
    assert await production() == f"{ADAPTER}/versions/1"


async def test_an_evaluation_job_measures_the_same_and_says_what_passes(
    registry: tuple[str, RegistryCalls], tiny_base: Path, data: dict[str, str], tmp_path: Path
) -> None:
    address, calls = registry
    spec = small_job(tiny_base, data, evaluation={"metrics": FIGURES})
    spec["hyperparameters"] |= {"max_steps": 8}
    spec["evaluation"] = {"metrics": FIGURES, "answers": {"max_new_tokens": 8}}
    trained = await asyncio.to_thread(attempt, spec, tmp_path / "train", address)
    assert trained.code == 0, trained.message

    async def evaluate(*conditions: str) -> tuple[Outcome, dict[str, str]]:
        evaluation = {
            "version": "bot:1",
            "dataset": {"path": data["held_out"]},
            "metrics": FIGURES,
            "answers": {"max_new_tokens": 8},
            "conditions": conditions,
        }
        done = await asyncio.to_thread(
            attempt, evaluation, tmp_path / "eval", address, None, "evaluate"
        )
        version = await calls.stub.GetVersion(pb.GetVersionRequest(name=f"{ADAPTER}/versions/1"))
        return done, dict(version.labels)

    done, labels = await evaluate("token_accuracy >= 0", "perplexity > 1")
    assert done.code == 0, done.message
    figures = lineage_figures(trained)
    for name in ("loss", "perplexity", *FIGURES):
        found = float(labels[f"eval.held-out.{name}"])
        assert found == pytest.approx(figures[f"eval_{name}"], rel=1e-3, abs=1e-5), name
    assert labels["eval.held-out.passed"] == "true"
    done, labels = await evaluate("exact_match > 1")
    assert labels["eval.held-out.passed"] == "false"
    assert "exact_match > 1 does not hold: it is 0" in done.log
    done, _ = await evaluate("rouge > 1")
    assert done.code == 64
    assert "conditions[0]" in done.message


class Forgetful:
    """A model whose memory ends with more than two prompts; it answers each with its own last token."""

    device = torch.device("cpu")

    def __init__(self, most: int) -> None:
        self.most = most
        self.generation_config = None
        self.batches: list[int] = []

    def modules(self) -> Iterator[torch.nn.Module]:
        yield from ()

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        self.batches.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)


def test_answers_are_written_fewer_at_once_when_memory_runs_out(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in "abcdef"]
    questions = [Question(Place("f", 1), one, "", "") for one in ids]
    lines: list[str] = []
    model = Forgetful(2)
    writer = AnswerWriter(tokenizer, frozenset({2}), Answers(batch_size=6), lines.append)
    assert writer.write(model, questions) == list("abcdef")
    assert model.batches == [6, 3, 1, 1, 1, 1, 1, 1]
    assert lines[0] == ("Memory ran out while 6 answers were generated at once; going on with 3.")
    with pytest.raises(torch.OutOfMemoryError):
        writer.write(Forgetful(0), questions[:1])
