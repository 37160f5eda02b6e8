"""DPO, KTO, ORPO and reward models: their losses are the papers', and their reference is the base."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid, softplus
from transformers import AutoModelForCausalLM

from services.trainer.run import training
from services.trainer.run.exits import PreemptedError
from services.trainer.run.trainers.common import without_dropout
from tests.unit.trainer_worker.support import COLOURS, Outcome, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Change = dict[str, Any]
Train = Callable[..., Outcome]
BETA = 0.3
OBJECTIVES = ("dpo", "kto", "orpo", "reward")


def rows_of(kind: str, count: int = 12) -> list[Change]:
    """Answers of several lengths, so that batches are padded."""
    rows: list[Change] = []
    for number in range(count):
        right, wrong = COLOURS[number % 4], COLOURS[(number + 1) % 4]
        prompt = f"{number} {right * (1 + number % 5)}"
        good, bad = f"I like {right}", f"No, {wrong} " * (1 + number % 3)
        if kind == "kto":
            label = number % 2 == 0
            rows.append({"prompt": prompt, "completion": good if label else bad, "label": label})
        else:
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
    return rows


def write(path: Path, rows: list[Change]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def compare(tiny_base: Path, tmp_path: Path) -> Train:
    """Trains with an objective; keyword arguments change the spec's fields."""

    def run(
        kind: str, folder: str = "work", rows: list[Change] | None = None, **changes: Any
    ) -> Outcome:
        data = tmp_path / f"{kind}.jsonl"
        write(data, rows_of(kind) if rows is None else rows)
        spec = {
            "base": {"source": str(tiny_base)},
            "dataset": {"path": str(data)},
            "method": {"lora": {"rank": 4}},
            "objective": {kind: {}},
            "hyperparameters": {"learning_rate": 0.002, "micro_batch_size": 4, "epochs": 1},
            "resources": {"cpu_threads": 1},
            "output": {"adapter": "bot"},
            "seed": 7,
        }
        method = changes.pop("method", None)
        if method:
            spec["method"] = method
        return attempt(merge(spec, changes), tmp_path / folder)

    return run


@pytest.fixture
def trainer_of(compare: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The trainer of a job as it is before its first step, with numbers in its adapter that make a difference."""

    def make(kind: str, **changes: Any) -> Any:
        found: list[Any] = []

        def take(self: Any, trainer: Any, store: Any) -> None:
            found.append(trainer)
            raise PreemptedError("taken")

        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "_fit", take)
            outcome = compare(kind, **changes)
        assert found, outcome.message
        trainer = found[0]
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return trainer

    return make


def loss_of(trainer: Any, rows: list[Change]) -> float:
    """What the trainer makes of the rows, without dropout."""
    with without_dropout(trainer.model), torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer.eval_collator(rows)))


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities of the answer's tokens, of one row alone."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, -ids.shape[1] :].float()
    found = -cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    return found[len(prompt) - 1 :]


def both(model: Any, rows: list[Change]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities of chosen and of rejected answers."""
    chosen, rejected = (
        torch.stack([log_probability(model, row["prompt_ids"], row[name]).sum() for row in rows])
        for name in ("chosen_ids", "rejected_ids")
    )
    return chosen, rejected


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def dpo_loss(kind: str, policy: Any, base: Any, rows: list[Change]) -> float:
    chosen, rejected = (
        ours - theirs for ours, theirs in zip(both(policy, rows), both(base, rows), strict=True)
    )
    margin = BETA * (chosen - rejected)
    if kind == "sigmoid":
        return float(softplus(-margin).mean())
    if kind == "hinge":
        return float((1 - margin).clamp(min=0).mean())
    if kind == "robust":
        return float(((0.9 * softplus(-margin) - 0.1 * softplus(margin)) / 0.8).mean())
    chosen = chosen / torch.tensor([len(row["chosen_ids"]) for row in rows])
    rejected = rejected / torch.tensor([len(row["rejected_ids"]) for row in rows])
    return float(((chosen - rejected - 1 / (2 * BETA)) ** 2).mean())


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust"])
def test_dpos_losses_are_those_of_the_papers(
    kind: str, trainer_of: Callable[..., Any], base: Any
) -> None:
    trainer = trainer_of("dpo", objective={"dpo": {"loss": kind, "beta": BETA}})
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model):
        expected = dpo_loss(kind, trainer.model, base, rows)
    assert found == pytest.approx(expected, rel=1e-4)


def test_dpos_usual_loss_is_that_of_the_chosen_tokens(
    trainer_of: Callable[..., Any], base: Any
) -> None:
    trainer = trainer_of("dpo", objective={"dpo": {"beta": BETA, "sft_weight": 0.5}})
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model):
        tokens = torch.cat(
            [log_probability(trainer.model, row["prompt_ids"], row["chosen_ids"]) for row in rows]
        )
        expected = dpo_loss("sigmoid", trainer.model, base, rows) - 0.5 * float(tokens.mean())
    assert found == pytest.approx(expected, rel=1e-4)


def moved(policy: Any, base: Any, prompt: list[int], answer: list[int]) -> float:
    """How much likelier the policy finds an answer than the base, in nats."""
    return float(
        (log_probability(policy, prompt, answer) - log_probability(base, prompt, answer)).sum()
    )


def test_ktos_loss_weighs_good_and_bad_answers_against_the_batchs_divergence(
    trainer_of: Callable[..., Any], base: Any
) -> None:
    weights = {"beta": BETA, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    trainer = trainer_of("kto", objective={"kto": weights})
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model):
        others = [
            moved(trainer.model, base, row["prompt_ids"], rows[at - 1]["completion_ids"])
            for at, row in enumerate(rows)
        ]
        divergence = max(0.0, sum(others) / len(others))
        losses = []
        for row in rows:
            away = moved(trainer.model, base, row["prompt_ids"], row["completion_ids"]) - divergence
            sign, weight = (1, 2.0) if row["label"] else (-1, 0.5)
            losses.append(weight * (1 - 1 / (1 + math.exp(-sign * BETA * away))))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_ktos_last_batch_of_one_row_takes_its_stranger_from_the_data(
    trainer_of: Callable[..., Any],
) -> None:
    trainer = trainer_of("kto")
    row = trainer.graft_run.prepared.train[0]
    batch = trainer.eval_collator([row])
    assert batch["KL_input_ids"].tolist() != batch["input_ids"].tolist()
    assert batch["KL_input_ids"][0, : len(row["prompt_ids"])].tolist() == row["prompt_ids"]


def test_orpos_loss_is_the_chosen_texts_and_the_odds(trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of("orpo", objective={"orpo": {"beta": BETA}})
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model):
        model = trainer.model
        texts = [row["prompt_ids"] + row["chosen_ids"] for row in rows]
        nll = -torch.cat([log_probability(model, text[:1], text[1:]) for text in texts]).mean()
        odds = []
        for row in rows:
            chosen, rejected = (
                log_probability(model, row["prompt_ids"], row[name]).mean().double()
                for name in ("chosen_ids", "rejected_ids")
            )
            odds.append(torch.logit(chosen.exp()) - torch.logit(rejected.exp()))
    expected = float(nll - BETA * logsigmoid(torch.stack(odds)).mean())
    assert found == pytest.approx(expected, rel=1e-4)


def test_orpo_is_finite_where_an_answer_is_certain(trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of("orpo")
    batch = trainer.eval_collator(trainer.graft_run.prepared.train[:2])
    ids = batch["input_ids"]
    # All of the probability is the next token's.
    logits = torch.zeros(*ids.shape, 1024)
    logits[:, :-1].scatter_(2, ids[:, 1:, None], 100.0)
    logits.requires_grad_()
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=logits), batch)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_a_reward_models_loss_is_bradley_and_terrys(trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of("reward")
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model), torch.no_grad():
        scores = [
            [float(trainer.model(input_ids=torch.tensor([row[name]])).logits) for row in rows]
            for name in ("chosen_ids", "rejected_ids")
        ]
    margins = torch.tensor(scores[0]) - torch.tensor(scores[1])
    assert found == pytest.approx(float(softplus(-margins).mean()), rel=1e-4)


REFERENCED = {
    "lora": {"rank": 4},
    "pissa": {"rank": 4},
    "ia3": {},
    "full": {},
    "bottleneck": {},
    "prompt_tuning": {},
    "p_tuning_v2": {},
}


@pytest.mark.parametrize("method", REFERENCED)
def test_the_reference_is_the_base_whatever_the_method(
    method: str, trainer_of: Callable[..., Any], base: Any
) -> None:
    changes: Change = {"method": {method: REFERENCED[method]}}
    if method == "full":
        changes["output"] = {"adapter": "", "base": "bot"}
    trainer = trainer_of("dpo", **changes, objective={"dpo": {"beta": BETA}})
    rows = trainer.graft_run.prepared.train[:4]
    found = loss_of(trainer, rows)
    with without_dropout(trainer.model):
        assert found == pytest.approx(dpo_loss("sigmoid", trainer.model, base, rows), rel=1e-4)
    assert abs(found - math.log(2)) > 1e-3  # It is not held against itself.


@pytest.mark.parametrize(("kind", "bar"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_a_bases_own_dropout_does_not_blur_the_reference(
    kind: str, bar: float, compare: Train, tiny_base: Path, tmp_path: Path
) -> None:
    dropping = tmp_path / "dropping"
    shutil.copytree(tiny_base, dropping)
    config = json.loads((dropping / "config.json").read_text())
    (dropping / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    outcome = compare(kind, base={"source": str(dropping)}, hyperparameters={"max_steps": 1})
    assert outcome.code == 0, outcome.message
    # A new adapter is the base, so the first loss is that of who cannot tell them apart.
    assert outcome.losses[0] == pytest.approx(bar, abs=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "orpo", "reward"])
def test_accumulated_batches_make_the_step_of_one_large_batch(kind: str, compare: Train) -> None:
    rows = [
        {"prompt": "red", "chosen": f"I like {one}", "rejected": f"No, {one}"} for one in "abcdefgh"
    ]
    norms = []
    for size in (8, 2):
        hyper = {"max_steps": 2, "micro_batch_size": size, "gradient_accumulation_steps": 8 // size}
        outcome = compare(kind, f"by{size}", rows, hyperparameters=hyper)
        assert outcome.code == 0, outcome.message
        metrics = [event["metrics"] for event in outcome.events if "metrics" in event]
        norms.append([(one["loss"], one["grad_norm"]) for one in metrics])
    for whole, parts in zip(*norms, strict=True):
        # ORPO takes a mean over the tokens of each part, of which there are not quite as many in all of them.
        assert parts == pytest.approx(whole, rel=5e-3)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_recomputed_activations_change_nothing(kind: str, compare: Train) -> None:
    losses = [
        compare(
            kind, f"{again}", hyperparameters={"gradient_checkpointing": again, "max_steps": 2}
        ).losses
        for again in (False, True)
    ]
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


FIGURES = {
    "dpo": {"accuracy", "margin", "chosen_reward", "rejected_reward"},
    "kto": {"kl", "good_reward", "bad_reward"},
    "orpo": {"accuracy", "log_odds_ratio", "sft_loss"},
    "reward": {"accuracy", "margin", "mean_reward"},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_held_out_answers_have_figures_of_their_own(kind: str, compare: Train) -> None:
    hyper = {"micro_batch_size": 2, "max_steps": 1}
    outcome = compare(kind, dataset={"eval_fraction": 0.5}, hyperparameters=hyper)
    assert outcome.code == 0, outcome.message
    reports = [event["metrics"] for event in outcome.events if "metrics" in event]
    assert reports[-1]["eval_loss"] > 0
    figures = reports[-1]["figures"]
    assert {f"eval_{name}" for name in FIGURES[kind]} <= set(figures)


def test_a_part_without_good_answers_does_not_thin_the_figure_of_good_ones(
    trainer_of: Callable[..., Any], base: Any
) -> None:
    trainer = trainer_of("kto", hyperparameters={"micro_batch_size": 2})
    run = trainer.graft_run
    good, bad = (
        [row for row in run.prepared.train if row["label"] is one] for one in (True, False)
    )
    run = replace(run, prepared=replace(run.prepared, evaluation=[*good[:2], *bad[:2]]))
    trainer.graft_run = run
    trainer.evaluate()
    with without_dropout(trainer.model):
        rewards = [
            0.1 * moved(trainer.model, base, row["prompt_ids"], row["completion_ids"])
            for row in good[:2]
        ]
    found = run.progress.last.figures["eval_good_reward"]
    assert found == pytest.approx(sum(rewards) / 2, rel=1e-3)


@pytest.mark.parametrize("label", [True, False])
def test_kto_needs_good_and_bad_answers(label: bool, compare: Train) -> None:
    outcome = compare("kto", rows=[{**row, "label": label} for row in rows_of("kto")])
    assert outcome.code == 65
    kind, missing = ("good", "bad") if label else ("bad", "good")
    assert f"All 12 rows are {kind} answers" in outcome.message
    assert f"Add {missing} answers" in str(outcome.finished)


def test_kto_needs_two_rows_per_batch(compare: Train) -> None:
    outcome = compare("kto", hyperparameters={"micro_batch_size": 1})
    assert outcome.code == 64
    assert (
        "hyperparameters.micro_batch_size is 1; it must be at least 2 with KTO" in outcome.message
    )


@pytest.mark.parametrize("kind", ["dpo", "orpo", "reward"])
def test_rows_without_a_rejected_answer_are_refused_with_what_is_needed(
    kind: str, compare: Train
) -> None:
    outcome = compare(kind, rows=[{"instruction": "red", "output": "I like red"}] * 4)
    assert outcome.code == 65
    assert "chosen and rejected answers to the same prompt" in outcome.message
