"""A head read from a model makes the model's own logits, whatever its architecture does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graft.spec_file import spec_from_dict
from transformers import AutoConfig, AutoModelForCausalLM

from services.trainer.methods import METHODS, Setting
from services.trainer.run.trainers.heads import hidden_states, read_head
from services.trainer.tokens import load_tokenizer

pytestmark = pytest.mark.filterwarnings("default")
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", SIZES),
        ("qwen2", SIZES),
        ("mistral", SIZES),
        ("phi", {**SIZES, "num_key_value_heads": 2}),
        ("gpt2", GPT2),
        ("gemma2", {**SIZES, "final_logit_softcapping": 2.0}),
        ("granite", {**SIZES, "logits_scaling": 8.0}),
        ("cohere", {**SIZES, "logit_scale": 0.25}),
    ],
)
def test_a_head_makes_the_models_own_logits(kind: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    ids = torch.randint(1, 96, (2, 7))
    inputs = {"input_ids": ids, "position_ids": torch.arange(7).expand(2, 7)}
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits
        for own_forward in (False, True):
            states = hidden_states(model, inputs, own_forward)
            torch.testing.assert_close(read_head(model).logits(states), expected)


def test_the_cross_entropy_is_summed_in_parts_as_it_would_be_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from services.trainer.run.trainers import heads

    head = heads.Head(torch.randn(16, 8), None, 1.0, None)
    hidden, targets = torch.randn(10, 8), torch.randint(0, 16, (10,))
    whole = torch.nn.functional.cross_entropy(head.logits(hidden), targets, reduction="sum")
    monkeypatch.setattr(heads, "_MOST_LOGITS", 3 * 16)
    torch.testing.assert_close(head.cross_entropy(hidden, targets), whole)


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning", "p_tuning_v2", "bottleneck"])
def test_an_adapted_models_hidden_states_make_its_own_logits(kind: str, tiny_base: Path) -> None:
    message = getattr(spec_from_dict({"method": {kind: {}}}).method, kind)
    setting = Setting(
        base_name="tiny",
        task_type="CAUSAL_LM",
        total_steps=1,
        gradient_checkpointing=False,
        tokenizer=load_tokenizer(tiny_base),
        seed=1,
    )
    method = METHODS[kind].make(METHODS[kind].parse(message), setting)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    adapted = method.apply(model).eval()
    ids = torch.randint(3, 1000, (2, 7))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
        states = hidden_states(adapted, {"input_ids": ids}, method.uses_own_forward())
        expected = adapted(input_ids=ids).logits[:, -7:]
        torch.testing.assert_close(read_head(adapted).logits(states), expected)
