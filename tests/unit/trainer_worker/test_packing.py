"""Packing changes nothing but speed: loss and gradients are those of the rows alone, or packing is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graft.errors import GraftError, Reason
from transformers import AutoConfig, AutoModelForCausalLM

from services.trainer.formats import Place
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.isolation import check_isolation
from services.trainer.tokens import IGNORED, TokenRow
from services.trainer.tokens.packing import pack_rows
from tests.unit.trainer_worker.support import Outcome

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 6, "head_dim": 8}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ISOLATING: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": WINDOW,
    "gemma": {"head_dim": 8},
    "gemma2": WINDOW,
    "phi": {},
    "phi3": {},
    "glm": {"head_dim": 8},
    "gpt2": {
        **GPT2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
}
MIXING: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


def tiny_model(kind: str, sizes: dict[str, Any], attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **({} if kind == "gpt2" else SIZES) | sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # Large weights, so that attention sees differences.
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def documents() -> list[TokenRow]:
    random = np.random.default_rng(0)
    return [
        TokenRow(
            Place("d", number),
            random.integers(3, 128, length).astype(np.int32),
            np.arange(length) > learned_from,
        )
        for number, (length, learned_from) in enumerate(
            [(20, 0), (1, 0), (13, 5), (9, 0), (2, 0), (17, 8)], 1
        )
    ]


def loss_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten().long(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def loss_and_gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    found = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    return total, torch.cat(found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ISOLATING)
def test_the_packed_loss_and_its_gradients_are_those_of_the_documents_alone(
    kind: str, attention: str
) -> None:
    model = tiny_model(kind, ISOLATING[kind], attention)
    rows = documents()
    packed = PackedRows(rows, pad_id=0, capacity=40)
    assert len(packed.lengths) < len(rows) / 2
    together = loss_and_gradients(model, [packed([{"row": n} for n in range(len(packed.lengths))])])
    alone = loss_and_gradients(model, [PaddedRows([row], 0)([{"row": 0}]) for row in rows])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert float((together[1] - alone[1]).norm() / alone[1].norm()) < 1e-4
    check_isolation(model)


@pytest.mark.parametrize("kind", MIXING)
def test_an_architecture_that_mixes_packed_rows_is_refused_by_name(kind: str) -> None:
    with pytest.raises(GraftError, match=rf"architecture \({kind}\) does not keep") as caught:
        check_isolation(tiny_model(kind, MIXING[kind]))
    assert caught.value.reason is Reason.INVALID_SPEC
    assert "packing to false" in caught.value.next_step


def test_a_job_that_packs_on_such_a_base_is_refused(
    train: Callable[..., Outcome], tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "falcon"
    model = tiny_model("falcon", {"alibi": False, "vocab_size": 1024})
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_base / name, base)
    outcome = train(base={"source": str(base)}, hyperparameters={"packing": True, "max_steps": 1})
    assert "does not keep packed rows apart" in outcome.message


def test_a_packed_job_begins_with_the_loss_of_the_same_job_unpacked(
    train: Callable[..., Outcome],
) -> None:
    one_step = {"max_steps": 1, "micro_batch_size": 64}
    method = {"lora": {"rank": 8}}
    packed = train("packed", method=method, hyperparameters={**one_step, "packing": True})
    padded = train("padded", method=method, hyperparameters=one_step)
    assert packed.losses == pytest.approx(padded.losses, rel=1e-5)


def test_a_hundred_thousand_rows_are_packed_without_waste() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 100_000).tolist()
    packs = pack_rows(lengths, 1024)
    assert sum(lengths) / (1024 * len(packs)) > 0.97
