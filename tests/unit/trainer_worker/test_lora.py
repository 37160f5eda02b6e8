"""The quicker parts of the worker compute what the libraries' own do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from services.trainer.run.fused import fuse_lora
from services.trainer.run.trainers import head_loss

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]


@pytest.fixture
def adapted(tiny_base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 1000, (3, 17), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(torch.arange(17) % 3 == 0, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(17).expand(3, 17)}


def loss_and_gradients(model: Any, loss: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def library_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    learned = int((inputs["labels"][:, 1:] != -100).sum())
    loss: torch.Tensor = model(**inputs, use_cache=False).loss * learned
    return loss


@pytest.mark.parametrize("most_logits", [2**26, 5 * 1024])
def test_loss_and_gradients_are_those_of_the_libraries(
    adapted: Any,
    inputs: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    most_logits: int,
) -> None:
    monkeypatch.setattr(head_loss, "_MOST_LOGITS", most_logits)  # The smaller one means chunks.
    assert head_loss.has_plain_head(adapted)
    expected = loss_and_gradients(adapted, library_loss(adapted, inputs))
    assert fuse_lora(adapted) == 4
    measured = loss_and_gradients(adapted, head_loss.summed_loss(adapted, inputs))
    assert measured[0] == pytest.approx(expected[0], rel=1e-5)
    assert len(measured[1]) == len(expected[1]) == 8
    for ours, theirs in zip(measured[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_model_that_does_more_with_its_logits_is_left_to_the_library(adapted: Any) -> None:
    adapted.config.final_logit_softcapping = 30.0
    assert not head_loss.has_plain_head(adapted)
