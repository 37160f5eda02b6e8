"""What a spec says reaches the libraries: TRL's arguments and the base's type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graft.trainer.v1 import job_spec_pb2 as pb
from trl import SFTConfig

from services.trainer.run.models import load_model
from services.trainer.run.trainers.common import total_steps, training_arguments
from services.trainer.spec import JobSpec, parse_spec

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]


def spec_of(**fields: object) -> JobSpec:
    """A spec with these hyperparameters."""
    return parse_spec(
        pb.JobSpec(
            base=pb.BaseSpec(source="bases/tiny"),
            dataset=pb.DatasetSpec(path="data.jsonl"),
            hyperparameters=pb.Hyperparameters(**fields),  # type: ignore[arg-type]
            output=pb.Output(adapter="bot"),
            seed=7,
        )
    )


@pytest.mark.parametrize(
    ("given", "theirs"),
    [
        ({}, {"lr_scheduler_type": "linear", "weight_decay": 0.0, "logging_steps": 1}),
        ({"schedule": "linear"}, {"lr_scheduler_type": "linear"}),
        ({"schedule": "cosine"}, {"lr_scheduler_type": "cosine"}),
        ({"schedule": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
        ({"weight_decay": 0.25}, {"weight_decay": 0.25}),
        ({"report_every_steps": 7}, {"logging_strategy": "steps", "logging_steps": 7}),
        ({"warmup_ratio": 0.25, "max_steps": 10}, {"warmup_steps": 3, "max_steps": 10}),
        ({"epochs": 1.5}, {"max_steps": 6}),
        ({"learning_rate": 0.125}, {"learning_rate": 0.125}),
        ({"max_grad_norm": 2.0}, {"max_grad_norm": 2.0}),
        ({"micro_batch_size": 3}, {"per_device_train_batch_size": 3}),
        ({"gradient_accumulation_steps": 5}, {"gradient_accumulation_steps": 5}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"optimizer": "adamw"}, {"optim": "adamw_torch_fused"}),
        ({"optimizer": "paged_adamw_8bit"}, {"optim": "paged_adamw_8bit"}),
    ],
)
def test_hyperparameters_reach_trl(
    given: dict[str, object], theirs: dict[str, object], tmp_path: Path
) -> None:
    spec = spec_of(**given)
    arguments = training_arguments(SFTConfig, spec, total_steps(spec, 4), tmp_path)
    assert {name: getattr(arguments, name) for name in theirs} == theirs
    assert (arguments.seed, arguments.data_seed) == (7, 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_base_is_held_in_the_type_that_the_spec_names(dtype: str, tiny_base: Path) -> None:
    spec = parse_spec(
        pb.JobSpec(
            base=pb.BaseSpec(source=str(tiny_base), dtype=dtype),
            dataset=pb.DatasetSpec(path="data.jsonl"),
            output=pb.Output(adapter="bot"),
        )
    )
    model = load_model(tiny_base, spec.base)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
