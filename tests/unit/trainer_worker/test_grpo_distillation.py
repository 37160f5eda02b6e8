"""GRPO and distillation on a tiny base: they learn, are saved and loaded elsewhere, and refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from services.trainer.methods.lora import Lora
from services.trainer.preflight.check import check_base
from services.trainer.run.fused import fuse_lora
from services.trainer.run.trainers.group_order import GroupOrder
from services.trainer.run.trainers.heads import Head
from services.trainer.spec import parse_spec
from tests.support.models import make_base
from tests.unit.trainer_worker.support import COLOURS, ROOT, Outcome, attempt, merge

pytestmark = [
    pytest.mark.training,
    # The libraries' own warnings are not ours to mend.
    pytest.mark.filterwarnings("default"),
]
Spec = dict[str, Any]
Train = Callable[..., Outcome]
PROBE = [[1, 40, 41, 42, 43, 44, 45, 46]]
AN_E = {"regex": {"pattern": "e"}}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Path:
    rows = [{"prompt": f"{COLOURS[n % 4]} {n}", "answer": COLOURS[n % 4]} for n in range(16)]
    return write_rows(folder / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Path:
    """Wider than the base, with fewer layers and other weights; of the same tokenizer."""
    return make_base(folder / "teacher", hidden=128, layers=1, seed=5)


@pytest.fixture(scope="module")
def grpo_spec(tiny_base: Path, prompts: Path) -> Spec:
    return {
        "base": {"source": str(tiny_base)},
        "dataset": {"path": str(prompts), "eval_fraction": 0.25},
        "method": {"lora": {"rank": 8}},
        "objective": {"grpo": {"rewards": [AN_E], "generations": 8, "max_completion_tokens": 8}},
        "hyperparameters": {
            "max_steps": 36,
            "learning_rate": 0.01,
            "micro_batch_size": 32,
            "schedule": "constant",
        },
        "resources": {"cpu_threads": 1},
        "output": {"adapter": "bot"},
        "seed": 7,
    }


@pytest.fixture(scope="module")
def distillation_spec(grpo_spec: Spec, teacher: Path, folder: Path) -> Spec:
    rows = [
        {"instruction": COLOURS[n % 4] * (1 + n % 5), "output": f"I like {COLOURS[n % 4]}"}
        for n in range(48)
    ]
    spec = {name: part for name, part in grpo_spec.items() if name != "objective"}
    return {
        **spec,
        "dataset": {"path": str(write_rows(folder / "rows.jsonl", rows)), "eval_fraction": 0.25},
        "objective": {"distillation": {"teacher": str(teacher)}},
        "hyperparameters": {"max_steps": 45, "learning_rate": 0.01, "micro_batch_size": 8},
    }


@pytest.fixture
def grpo(grpo_spec: Spec, tmp_path: Path) -> Train:
    return lambda folder="work", **changes: attempt(merge(grpo_spec, changes), tmp_path / folder)


@pytest.fixture
def distil(distillation_spec: Spec, tmp_path: Path) -> Train:
    return lambda folder="work", **changes: attempt(
        merge(distillation_spec, changes), tmp_path / folder
    )


@pytest.fixture(scope="module")
def trained(
    folder: Path, grpo_spec: Spec, distillation_spec: Spec
) -> Iterator[dict[str, tuple[Outcome, Any]]]:
    """Both objectives trained once, with the probe's logits as they were when the result was saved."""
    saw: list[Any] = []
    save = Lora.save

    def save_and_look(method: Lora, model: Any, to: Path) -> None:
        save(method, model, to)
        with torch.no_grad():
            saw.append(model.eval()(input_ids=torch.tensor(PROBE)).logits.numpy())
        model.train()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lora, "save", save_and_look)
        specs = {"grpo": grpo_spec, "distillation": distillation_spec}
        yield {
            name: (attempt(spec, folder / f"{name}-work"), saw[-1]) for name, spec in specs.items()
        }


def figures(outcome: Outcome, name: str) -> list[float]:
    """A figure of each report that is not an evaluation's."""
    reports = [event["metrics"] for event in outcome.events if "metrics" in event]
    return [r["figures"].get(name, 0.0) for r in reports if "eval_loss" not in r]


def evaluations(outcome: Outcome) -> list[float]:
    return [
        e["metrics"]["eval_loss"] for e in outcome.events if "eval_loss" in e.get("metrics", {})
    ]


def test_grpo_learns_what_is_rewarded(trained: dict[str, tuple[Outcome, Any]]) -> None:
    outcome, _ = trained["grpo"]
    assert outcome.code == 0, outcome.message
    rewards = figures(outcome, "reward")
    assert np.mean(rewards[:3]) < 0.4
    assert np.mean(rewards[-8:]) > 0.9
    # The held-out prompts' loss is their mean reward, negative.
    assert evaluations(outcome)[-1] < -0.7
    assert set(figures(outcome, "completion_tokens")) <= {*np.arange(1, 8.01, 1 / 32)}
    assert "12 prompts of" in outcome.log


def test_the_student_comes_close_to_its_teacher(trained: dict[str, tuple[Outcome, Any]]) -> None:
    outcome, _ = trained["distillation"]
    assert outcome.code == 0, outcome.message
    assert figures(outcome, "divergence")[0] > 1.0
    assert outcome.losses[-1] < 0.01
    assert evaluations(outcome)[-1] < 0.05


FRESH = """
import json, sys
import numpy as np, torch
from peft import PeftModel
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

base, teacher, probe, out, *results = sys.argv[1:]
probe = torch.tensor(json.loads(probe))
tokenizer = AutoTokenizer.from_pretrained(base)
found = {}
for result in results:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, result).eval()
    with torch.no_grad():
        found[result] = model(input_ids=probe).logits.tolist()
grpo, student = results
text = tokenizer.apply_chat_template(
    [{"role": "user", "content": "redred"}, {"role": "assistant", "content": "I like red"}],
    tokenize=False,
)
ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
start = len(tokenizer(text.split("I like")[0], add_special_tokens=False)["input_ids"])
theirs = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
with torch.no_grad():
    student = log_softmax(model(input_ids=ids).logits[0, start - 1 : -2], -1)
    theirs = log_softmax(theirs(input_ids=ids).logits[0, start - 1 : -2], -1)
found["divergence"] = float(kl_div(student, theirs, log_target=True, reduction="sum")) / len(theirs)
json.dump(found, open(out, "w"))
"""


def test_the_saved_adapters_answer_the_same_in_a_fresh_process(
    trained: dict[str, tuple[Outcome, Any]], tiny_base: Path, teacher: Path, folder: Path
) -> None:
    results = {name: str(outcome.work_dir / "result") for name, (outcome, _) in trained.items()}
    out = folder / "fresh.json"
    subprocess.run(
        [
            sys.executable,
            "-c",
            FRESH,
            tiny_base,
            teacher,
            json.dumps(PROBE),
            out,
            *results.values(),
        ],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    found = json.loads(out.read_text())
    for name, (_, logits) in trained.items():
        np.testing.assert_allclose(np.array(found[results[name]]), logits, atol=1e-4, rtol=1e-4)
    assert found["divergence"] < 0.05


def test_rewards_are_summed_by_weight_and_the_divergence_from_the_base_is_counted(
    grpo: Train,
) -> None:
    always = {"length": {"max_tokens": 8}, "weight": -0.5}
    objective = {"grpo": {"rewards": [AN_E, always], "beta": 0.1, "temperature": 1.5}}
    outcome = grpo(objective=objective, hyperparameters={"max_steps": 3})
    assert outcome.code == 0, outcome.message
    for total, regex, length in zip(
        figures(outcome, "reward"),
        figures(outcome, "reward_regex"),
        figures(outcome, "reward_length"),
        strict=True,
    ):
        assert length == 1.0
        assert total == pytest.approx(regex - 0.5, abs=1e-6)
    kl = figures(outcome, "kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # A new adapter is the base.
    assert kl[-1] > 1e-4


def test_answers_of_conversations_and_completions_are_what_exact_match_compares_with(
    grpo: Train, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows: list[Spec] = [{"messages": turns}, {"prompt": "hi", "completion": "hello"}]
    for number, row in enumerate(rows):
        data = write_rows(tmp_path / f"{number}.jsonl", [row] * 4)
        outcome = grpo(
            f"work{number}",
            dataset={"path": str(data), "eval_fraction": 0},
            objective={"grpo": {"rewards": [{"exact_match": {}}]}},
            hyperparameters={"max_steps": 1},
        )
        assert outcome.code == 0, outcome.message


def test_an_adapter_that_is_turned_off_leaves_the_base(tiny_base: Path) -> None:
    # Else the divergence from the base would be 0 for ever, without a word.
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    probe = torch.tensor(PROBE)
    with torch.no_grad():
        before = model(input_ids=probe).logits
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        assert fuse_lora(adapted) == 14
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert not torch.allclose(adapted(input_ids=probe).logits, before)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(input_ids=probe).logits, before)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_the_generalized_one(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer  # Warns that it is experimental.

    draw = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(5, 8, generator=draw) for _ in range(2))
    heads = [
        Head(torch.randn(11, 8, generator=draw), torch.randn(11, generator=draw), 0.7, softcap)
        for softcap in (None, 3.0)
    ]
    ours, theirs = heads
    per_token, _ = ChunkedDivergenceFunction.apply(
        student, ours.weight, ours.bias, teacher, theirs.weight, theirs.bias, beta, 2.0,
        ours.scale, ours.softcap, theirs.scale, theirs.softcap,
    )  # fmt: skip
    whole = GKDTrainer.generalized_jsd_loss(
        ours.logits(student), theirs.logits(teacher), beta=beta, temperature=2.0, reduction="sum"
    )
    assert float(per_token.sum()) == pytest.approx(float(whole), rel=1e-4)


def test_a_teacher_with_unused_rows_behind_its_vocabulary_is_taken(
    distil: Train, teacher: Path, tmp_path: Path
) -> None:
    padded = tmp_path / "padded"
    shutil.copytree(teacher, padded)
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 1100}))
    tensors = load_file(padded / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([embeddings, embeddings[:76] * 0])
    save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    plain = distil("a", hyperparameters={"max_steps": 1})
    wide = distil(
        "b",
        objective={"distillation": {"teacher": str(padded)}},
        hyperparameters={"max_steps": 1},
    )
    assert wide.code == 0, wide.message
    assert wide.losses == pytest.approx(plain.losses, rel=1e-4)


def test_every_prompt_has_its_turn_and_each_step_is_full() -> None:
    order = GroupOrder(rows=5, prompts_per_step=2, generations=3, repeats=2, seed=1)
    order.begin_epoch(0)
    rows = list(order)
    assert len(rows) == len(order) == 3 * 2 * 3 * 2
    steps = np.array(rows).reshape(3, 2, 2, 3)
    assert (steps[:, 0] == steps[:, 1]).all()  # TRL takes each step's prompts twice.
    assert (steps == steps[..., :1]).all()  # Each prompt once per answer.
    assert set(rows) == set(range(5))
    assert rows == list(order)
    order.begin_epoch(1)
    assert rows != list(order)


@pytest.fixture
def other_vocabulary(teacher: Path, tmp_path: Path) -> Path:
    """A teacher whose tokenizer has one token more."""
    copy = tmp_path / "other"
    shutil.copytree(teacher, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    token = {
        "id": 1024, "content": "<|new|>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    tokenizer["added_tokens"].append(token)
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes(
    distil: Train, other_vocabulary: Path
) -> None:
    outcome = distil(objective={"distillation": {"teacher": str(other_vocabulary)}})
    assert outcome.code == 64
    assert "another vocabulary: 1025 tokens, and the base has 1024" in outcome.message
    assert "'<|new|>' is token 1024 of the teacher and none of the base" in outcome.message


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"rewards": []}, 64, ("objective.grpo.rewards", "at least one reward function")),
        ({"generations": 1}, 64, ("objective.grpo.generations is 1", "at least two answers")),
        (
            {"rewards": [{"json_schema": {"schema_json": '{"type": 3}'}}]},
            64,
            ("objective.grpo.rewards[0].json_schema.schema_json", "is not valid"),
        ),
        (
            {"rewards": [{"regex": {"pattern": "("}}]},
            64,
            ("objective.grpo.rewards[0].regex.pattern is '('", "missing )", "RE2"),
        ),
        (
            {"generations": 5},
            64,
            (
                "hyperparameters.micro_batch_size is 32",
                "a multiple of objective.grpo.generations (5)",
                "gradient_accumulation_steps to 5",
            ),
        ),
        (
            {"max_completion_tokens": 1024},
            64,
            ("objective.grpo.max_completion_tokens is 1024", "below hyperparameters.max_length"),
        ),
        (
            {"max_completion_tokens": 1022},
            65,
            ("No row has a prompt to answer", "leaves no room for an answer", "prompts.jsonl, row "),
        ),
    ],
)  # fmt: skip
def test_what_grpo_cannot_use_ends_with_its_code_and_a_next_step(
    grpo: Train, changes: Spec, code: int, words: tuple[str, ...]
) -> None:
    outcome = grpo(objective={"grpo": changes})
    assert outcome.code == code, outcome.message
    for word in words:
        assert word in outcome.message
    assert not (outcome.work_dir / "result").exists()


def test_a_reward_that_needs_answers_names_the_row_that_has_none(
    grpo: Train, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    outcome = grpo(
        dataset={"path": str(data), "eval_fraction": 0},
        objective={"grpo": {"rewards": [{"exact_match": {}}]}},
    )
    assert outcome.code == 65
    assert "a.jsonl, row 2: it has no answer, which exact_match compares with" in outcome.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": ""}, ("objective.distillation.teacher", "a model's folder or a hub id")),
        ({"teacher": "/no/such/teacher"}, ("The teacher cannot be used", "no such folder")),
        ({"beta": 2}, ("objective.distillation.beta is 2", "0 to 1")),
        ({"temperature": -1}, ("objective.distillation.temperature", "above 0")),
    ],
)
def test_what_distillation_cannot_use_is_refused(
    distil: Train, changes: Spec, words: tuple[str, ...]
) -> None:
    outcome = distil(objective={"distillation": changes})
    assert outcome.code == 64, outcome.message
    for word in words:
        assert word in outcome.message


def test_a_pickled_teacher_is_refused_before_a_job_waits_and_by_the_worker(
    distil: Train, distillation_spec: Spec, teacher: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(teacher, pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    changes: Spec = {"objective": {"distillation": {"teacher": str(pickled)}}}
    with pytest.raises(GraftError, match=r"objective.distillation.teacher cannot be used") as error:
        check_base(parse_spec(spec_from_dict(merge(distillation_spec, changes))))
    assert error.value.reason is Reason.NOT_A_MODEL
    outcome = distil(**changes)
    assert outcome.code == 64
    assert "The teacher cannot be used" in outcome.message
