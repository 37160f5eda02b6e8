""" "auto" and "all-linear" mean the right layers in every architecture, and what is trained there loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from google.protobuf.json_format import ParseDict
from graft.errors import GraftError
from graft.trainer.v1.job_spec_pb2 import MethodSpec
from peft import PeftModel
from safetensors.torch import load_file

from services.trainer.methods import METHODS, Setting
from services.trainer.run import targets
from services.trainer.run.snapshots import Snapshot

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
APART = GROUPED | {"head_dim": 8}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
QKVO = ["k_proj", "o_proj", "q_proj", "v_proj"]
MLP = ["down_proj", "gate_proj", "up_proj"]
FUSED_MLP = ["down_proj", "gate_up_proj"]
# Configuration, its settings, attention's projections, the other linear layers.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "Llama": ("LlamaConfig", GROUPED, QKVO, MLP),
    "Qwen2": ("Qwen2Config", GROUPED, QKVO, MLP),
    "Qwen3": ("Qwen3Config", APART, QKVO, MLP),
    "Mistral": ("MistralConfig", GROUPED, QKVO, MLP),
    "Gemma2": ("Gemma2Config", APART, QKVO, MLP),
    "Gemma3": ("Gemma3TextConfig", APART, QKVO, MLP),
    "Phi2": ("PhiConfig", GROUPED, ["dense", "k_proj", "q_proj", "v_proj"], ["fc1", "fc2"]),
    "Phi3": ("Phi3Config", GROUPED, ["o_proj", "qkv_proj"], FUSED_MLP),
    "GLM": ("GlmConfig", APART, QKVO, FUSED_MLP),
    "GLM4": ("Glm4Config", APART, QKVO, FUSED_MLP),
    # ChatGLM's own code is not run; GPT-NeoX names its layers as ChatGLM does.
    "ChatGLM": (
        "GPTNeoXConfig",
        SMALL,
        ["dense", "query_key_value"],
        ["dense_4h_to_h", "dense_h_to_4h"],
    ),
    # Both of its blocks have a c_proj, so attention's is named with its parent.
    "GPT2": ("GPT2Config", GPT2 | ENDS, ["attn.c_proj", "c_attn"], ["c_fc", "c_proj"]),
}
IDS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, ARCHITECTURES[name][0])(**ARCHITECTURES[name][1])
    return transformers.AutoModelForCausalLM.from_config(config)


def method_of(kind: str = "lora", task_type: str = "CAUSAL_LM", **settings: Any) -> Any:
    message = getattr(ParseDict({kind: settings}, MethodSpec()), kind)
    setting = Setting("tiny", task_type, 10, False, None, 0)
    method = METHODS[kind]
    return method.make(method.parse(message), setting)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_words_for_targets_mean_the_layers_that_they_say(name: str) -> None:
    _, _, attention, others = ARCHITECTURES[name]
    model = make_model(name)
    assert targets.choose_targets(model, ["auto"], "lora") == sorted(attention)
    ends = {layer.rsplit(".", 1)[-1] for layer in (*attention, *others)}
    assert targets.choose_targets(model, ["all-linear"], "lora") == sorted(ends)
    assert targets.choose_targets(model, [], "lora") == sorted(ends)


@pytest.mark.parametrize("word", ["auto", "all-linear"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_trained_on_them_is_the_same_when_loaded_again(
    name: str, word: str, tmp_path: Path
) -> None:
    method = method_of(rank=4, target_modules=[word])
    model = method.apply(make_model(name))
    before = logits(model)
    learn(method, model, {"input_ids": IDS, "labels": IDS})
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    layers = {module for module, _ in model.named_modules() if module.endswith("lora_A")}
    _, _, attention, others = ARCHITECTURES[name]
    assert len(layers) == 2 * len([*attention, *(others if word == "all-linear" else ())])
    method.save(model, tmp_path)
    again = PeftModel.from_pretrained(make_model(name), str(tmp_path))
    torch.testing.assert_close(logits(again), after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dora", "pissa", "adalora"])
def test_relatives_of_lora_work_on_weights_that_lie_the_other_way_round(
    kind: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"target_rank": 3} if kind == "adalora" else {"rank": 4}
    method = method_of(kind, **settings)
    model = method.apply(make_model("GPT2"))
    learn(method, model, {"input_ids": IDS, "labels": IDS})
    after = logits(model)
    method.save(model, tmp_path)
    again = PeftModel.from_pretrained(make_model("GPT2"), str(tmp_path))
    torch.testing.assert_close(logits(again), after, rtol=0, atol=1e-5)


def test_a_head_is_no_target() -> None:
    model = make_judge()
    assert "score" not in targets.linear_names(model)
    with pytest.raises(GraftError, match="no linear layer named score"):
        targets.choose_targets(model, ["score"], "lora")


def test_a_rank_above_a_layers_size_is_refused_with_the_layer_and_its_size() -> None:
    with pytest.raises(GraftError) as caught:
        method_of(rank=17).apply(make_model("Llama"))
    assert "method.lora.rank is 17" in caught.value.message
    assert "model.layers.0.self_attn.k_proj has 32 inputs and 16 outputs" in caught.value.message
    assert "at most 16" in caught.value.next_step
    # What is not targeted does not count.
    method_of(rank=17, target_modules=["q_proj"]).apply(make_model("Llama"))


def test_a_model_without_attention_is_told_what_it_has() -> None:
    config = transformers.MambaConfig(
        vocab_size=128, hidden_size=32, state_size=4, num_hidden_layers=2, **ENDS
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(GraftError) as caught:
        targets.choose_targets(model, ["auto"], "lora")
    assert "A mamba has no layers that auto could mean" in caught.value.message
    assert "in_proj" in caught.value.next_step


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "pissa", "adalora"])
def test_a_reward_models_head_is_trained_and_saved_with_it(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_rank": 3} if kind == "adalora" else {"rank": 4}
    method = method_of(kind, "SEQ_CLS", **settings)
    model = method.apply(make_judge())
    learn(method, model, {"input_ids": IDS, "labels": torch.tensor([[0.5], [-0.5]])})
    after = logits(model)
    method.save(model, tmp_path)
    again = PeftModel.from_pretrained(make_judge(), str(tmp_path))
    torch.testing.assert_close(logits(again), after, rtol=0, atol=1e-5)
    torch.testing.assert_close(head(again), head(model), rtol=0, atol=0)
    assert (head(model) - head(make_judge())).abs().max() > 1e-3
    # A checkpoint has it, too.
    Snapshot(method.checkpoint_files(model)).write(tmp_path / "checkpoint")
    resumed_method = method_of(kind, "SEQ_CLS", **settings)
    resumed = resumed_method.apply(make_judge())
    resumed_method.load_checkpoint(resumed, tmp_path / "checkpoint")
    torch.testing.assert_close(logits(resumed), after, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_pissa_goes_on_where_its_decomposition_comes_out_otherwise(
    name: str, tmp_path: Path
) -> None:
    method = method_of("pissa", rank=4)
    model = method.apply(make_model(name))
    learn(method, model, {"input_ids": IDS, "labels": IDS})
    Snapshot(method.checkpoint_files(model)).write(tmp_path / "checkpoint")
    elsewhere = method_of("pissa", rank=4, svd_iterations=1)
    resumed = elsewhere.apply(make_model(name))
    elsewhere.load_checkpoint(resumed, tmp_path / "checkpoint")
    torch.testing.assert_close(logits(resumed), logits(model), rtol=0, atol=1e-5)
    method.save(model, tmp_path / "here")
    elsewhere.save(resumed, tmp_path / "there")
    here, there = (
        load_file(tmp_path / at / "adapter_model.safetensors") for at in ("here", "there")
    )
    assert all(torch.equal(here[tensor], there[tensor]) for tensor in here)


def test_a_reference_beside_pissa_does_not_move_the_base_again() -> None:
    model = method_of("pissa", rank=4).apply(make_model("Llama"))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    rest = layer.get_base_layer().weight.clone()
    model.add_adapter("ref", model.peft_config["default"])
    assert torch.equal(layer.get_base_layer().weight, rest)


def make_judge() -> Any:
    """A reward model: its head gives one number."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED, num_labels=1)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def head(judge: Any) -> torch.Tensor:
    """The weights of its head."""
    found = (
        judge.get_submodule("base_model.model.score")
        if hasattr(judge, "peft_config")
        else judge.score
    )
    weight: torch.Tensor = (
        found.modules_to_save["default"].weight
        if hasattr(found, "modules_to_save")
        else found.weight
    )
    return weight.detach()


def learn(method: Any, model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Ten steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for step in range(1, 11):
        model.train()
        model(**inputs).loss.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
