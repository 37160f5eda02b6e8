"""The job spec: defaults, ranges, and files in YAML or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import read_spec_file, spec_from_dict

from services.trainer.methods.lora import LoraConfig
from services.trainer.spec import JobSpec, parse_spec

SMALLEST: dict[str, Any] = {
    "base": {"source": "models/Qwen2.5-0.5B"},
    "dataset": {"path": "data.jsonl"},
    "output": {"adapter": "support-bot"},
}


def spec_with(**changes: Any) -> JobSpec:
    return parse_spec(spec_from_dict({**SMALLEST, **changes}))


def lora_with(**settings: Any) -> LoraConfig:
    method = spec_with(method={"lora": settings}).method
    assert isinstance(method, LoraConfig)
    return method


def test_what_is_left_out_takes_the_contracts_defaults() -> None:
    spec = spec_with()
    assert spec.base.name == "qwen2.5-0.5b"
    assert spec.base.quantization == "none"
    assert spec.base.dtype == "auto"
    assert spec.dataset.sources[0].format is None
    assert spec.method == LoraConfig(rank=16, alpha=32.0, dropout=0.0, target_modules=())
    assert spec.objective.kind == "sft"
    hyper = spec.hyperparameters
    assert (hyper.epochs, hyper.learning_rate, hyper.micro_batch_size) == (3.0, 2e-4, 8)
    assert (hyper.gradient_accumulation_steps, hyper.max_length_tokens) == (1, 1024)
    assert (hyper.schedule, hyper.optimizer, hyper.max_grad_norm) == ("linear", "adamw", 1.0)
    assert (spec.resources.slots, spec.resources.max_restarts) == (1, 3)
    assert (spec.checkpointing.every_steps, spec.checkpointing.keep) == (50, 2)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert lora_with(rank=4).alpha == 8.0
    assert lora_with(rank=4, alpha=3).alpha == 3.0


def test_checkpoints_by_time_are_in_place_of_those_by_steps_unless_both_are_asked_for() -> None:
    alone = spec_with(checkpointing={"every_s": 600}).checkpointing
    assert (alone.every_steps, alone.every_s) == (0, 600.0)
    both = spec_with(checkpointing={"every_s": 600, "every_steps": 100}).checkpointing
    assert (both.every_steps, both.every_s) == (100, 600.0)


def test_to_use_the_best_checkpoint_is_to_keep_one() -> None:
    held_out = {"path": "data.jsonl", "eval_fraction": 0.1}
    spec = spec_with(dataset=held_out, checkpointing={"use_best": True})
    assert spec.checkpointing.keep_best == 1


def test_no_restarts_is_not_the_default_number_of_restarts() -> None:
    assert spec_with(resources={"max_restarts": 0}).resources.max_restarts == 0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("base.source", {"base": {"source": " "}}),
        ("base.name", {"base": {"source": "x", "name": "No Name"}}),
        ("base.name", {"base": {"source": "///"}}),
        ("base.dtype", {"base": {"source": "x", "dtype": "int3"}}),
        ("dataset.path", {"dataset": {}}),
        ("dataset.path", {"dataset": {"path": "a", "blob_digest": "sha256:" + "0" * 64}}),
        ("dataset.blob_digest", {"dataset": {"blob_digest": "md5:1"}}),
        ("dataset.blob_name", {"dataset": {"blob_digest": "sha256:" + "0" * 64}}),
        ("dataset.eval_fraction", {"dataset": {"path": "a", "eval_fraction": 0.6}}),
        ("dataset.max_rows", {"dataset": {"path": "a", "max_rows": -1}}),
        ("method.lora.rank", {"method": {"lora": {"rank": 513}}}),
        ("method.lora.rank", {"method": {"lora": {"rank": 0}}}),
        ("method.lora.rank", {"method": {"lora": {"rank": -1}}}),
        ("method.lora.alpha", {"method": {"lora": {"alpha": "NaN"}}}),
        ("method.lora.dropout", {"method": {"lora": {"dropout": 1.0}}}),
        ("method.lora.target_modules[1]", {"method": {"lora": {"targetModules": ["q", "q"]}}}),
        ("method.lora.target_modules[0]", {"method": {"lora": {"targetModules": ["a b"]}}}),
        ("hyperparameters.epochs", {"hyperparameters": {"epochs": -1}}),
        ("hyperparameters.learning_rate", {"hyperparameters": {"learning_rate": "Infinity"}}),
        ("hyperparameters.schedule", {"hyperparameters": {"schedule": "step"}}),
        ("hyperparameters.optimizer", {"hyperparameters": {"optimizer": "sgd"}}),
        ("hyperparameters.warmup_ratio", {"hyperparameters": {"warmup_ratio": 2}}),
        ("hyperparameters.micro_batch_size", {"hyperparameters": {"micro_batch_size": -8}}),
        ("resources.max_restarts", {"resources": {"max_restarts": -1}}),
        ("checkpointing.keep", {"checkpointing": {"keep": -1}}),
        ("checkpointing.every_s", {"checkpointing": {"every_s": -1}}),
        ("checkpointing.keep_best", {"checkpointing": {"keep_best": 2}}),
        ("checkpointing.use_best", {"checkpointing": {"use_best": True}}),
        (
            "dataset.loader_processes",
            {
                "dataset": {"path": "d.jsonl", "streaming": True, "loader_processes": 2},
                "hyperparameters": {"max_steps": 9},
            },
        ),
        ("output.adapter", {"output": {}}),
        ("output.adapter", {"output": {"adapter": "Bot!"}}),
        ("output.alias", {"output": {"adapter": "bot", "alias": "a/b"}}),
        ("seed", {"seed": -1}),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(GraftError) as caught:
        spec_with(**changes)
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.message.startswith(f"{field} is ")
    assert caught.value.metadata["field"] == field
    assert caught.value.next_step


def test_a_word_for_targets_stands_alone() -> None:
    assert lora_with(targetModules=["all-linear"]).target_modules == ("all-linear",)
    with pytest.raises(GraftError, match="nothing beside it"):
        lora_with(targetModules=["q_proj", "auto"])


def test_a_base_is_named_after_the_last_part_of_its_source() -> None:
    assert spec_with(base={"source": "/models/My Llama (v2)/"}).base.name == "my-llama-v2"


def test_yaml_and_json_in_either_spelling_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "base: {source: m, quantization: nf4}\nmethod: {lora: {target_modules: [q_proj]}}\n"
    )
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "base": {"source": "m", "quantization": "QUANTIZATION_NF4"},
                "method": {"lora": {"targetModules": ["q_proj"]}},
            }
        )
    )
    assert read_spec_file(tmp_path / "a.yaml") == read_spec_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"methd": {}}, ("no field methd", "Did you mean method?")),
        ({"method": {"lora": {"rnk": 1}}}, ("no field method.lora.rnk", "Did you mean rank?")),
        ({"base": {"quantization": "nf5"}}, ("base.quantization is 'nf5'", "mean nf4?")),
        ({"base": "tiny"}, ("base holds 'tiny'", "quantization")),
        ({"hyperparameters": {"epochs": "many"}}, ("hyperparameters.epochs is 'many'", "a number")),
        ({"method": {"lora": {"rank": 1.5}}}, ("method.lora.rank is 1.5", "whole number")),
        ({"method": {"lora": {"target_modules": "q"}}}, ("target_modules is 'q'", "a list of")),
        ({"seed": 1, "checkpointing": {"everySteps": 1, "every_steps": 2}}, ("given twice",)),
        ([], ("holds a list",)),
        (None, ("holds nothing",)),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_words(
    values: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(GraftError) as caught:
        spec_from_dict(values)
    assert caught.value.reason is Reason.INVALID_SPEC
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", b"base:\n  source: [\n", "is not YAML at line"),
        ("a.json", b'{"base": \n', "is not JSON at line 2"),
        ("a.yaml", b"base: \xff", "is not UTF-8 (byte 6)"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(
    tmp_path: Path, name: str, text: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(GraftError) as caught:
        read_spec_file(tmp_path / name)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="There is no spec file"):
        read_spec_file(tmp_path / "none.yaml")
