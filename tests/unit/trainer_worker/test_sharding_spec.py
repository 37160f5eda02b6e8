"""How a model may be shared, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict

from services.trainer.run.sharding.fsdp import decoder_layers
from services.trainer.run.sharding.zero import settings
from services.trainer.spec import parse_spec
from services.trainer.spec.sharding import Fsdp, Sharding, Zero
from tests.unit.trainer_worker.support import merge

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"zero": {"stage": 4}}, {}, "1 to 3"),
    ({"zero": {"offload_parameters": True}}, {}, "every process holds all parameters"),
    ({"fsdp": {"compute_dtype": "int8"}}, {}, "auto, float32 or bfloat16"),
    ({"fsdp": {}}, {"base": {"quantization": "QUANTIZATION_NF4"}}, "packed weights cannot be cut"),
    ({"fsdp": {}}, {"hyperparameters": {"optimizer": "adamw_8bit"}}, "adamw with"),
    ({"fsdp": {}}, {"hyperparameters": {"precision": "fp16"}}, "gradients lie apart"),
    ({"ddp": {}}, {"hyperparameters": {"torch_compile": True}}, "wraps the model"),
    ({"zero": {}}, {"method": {"ia3": {}}}, "reads its parameters whole"),
    ({"ddp": {}}, {"method": {"adalora": {}}}, "its ranks are moved"),
    (
        {"fsdp": {}},
        {
            "objective": {"grpo": {"rewards": [{"exact_match": {}}]}},
            "hyperparameters": {"micro_batch_size": 8},
        },
        "its answers are sampled",
    ),
]


def parsed(spec: dict[str, Any], sharding: dict[str, Any], **changes: Any) -> Sharding:
    job = merge(spec, changes) | ({"method": changes["method"]} if "method" in changes else {})
    job = merge(job, {"resources": {"sharding": sharding}})
    return parse_spec(spec_from_dict(job)).resources.sharding


def test_defaults(spec: dict[str, Any]) -> None:
    assert parsed(spec, {}) == Sharding()
    assert parsed(spec, {"fsdp": {}}) == Fsdp(reshard_after_forward=True, compute_dtype="auto")
    assert parsed(spec, {"fsdp": {"reshard_after_forward": False}}) == Fsdp(
        reshard_after_forward=False
    )
    assert parsed(spec, {"zero": {}}) == Zero(stage=2)


@pytest.mark.parametrize(("sharding", "changes", "words"), REFUSED)
def test_what_does_not_go_together_is_refused(
    spec: dict[str, Any], sharding: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(GraftError, match=words) as refused:
        parsed(spec, sharding, **changes)
    assert refused.value.reason is Reason.INVALID_SPEC
    assert refused.value.next_step


def test_deepspeed_is_told_to_share_and_nothing_more(spec: dict[str, Any]) -> None:
    job = parse_spec(spec_from_dict(spec))
    made = settings(Zero(stage=3, offload_optimizer=True, offload_parameters=True), job)
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["gradient_accumulation_steps"] == 1
    assert made["gradient_clipping"] == job.hyperparameters.max_grad_norm


def test_a_model_is_cut_at_the_layers_that_it_repeats(tiny_base: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert decoder_layers(model) == list(model.model.layers)
