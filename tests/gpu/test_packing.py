"""Packing on a device: the packed loss is that of the documents alone, in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from bench.gpu.architectures import device
from services.trainer.formats import Place
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.isolation import check_isolation
from services.trainer.tokens import IGNORED, TokenRow

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
# Standard deviation of what packing changes, of that of the losses themselves.
MOST_OF_SPREAD = {torch.float32: 1e-3, torch.bfloat16: 0.15}


@pytest.fixture(params=MOST_OF_SPREAD, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def model(base: Path, dtype: torch.dtype) -> Any:
    """The base with weights so large that attention tells tokens apart."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "proj.weight" in name:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
    return model.to(device())


def documents(vocabulary: int) -> list[TokenRow]:
    random = np.random.default_rng(0)
    return [
        TokenRow(
            Place("d", number),
            random.integers(3, vocabulary, length).astype(np.int32),
            np.arange(length) > 0,
        )
        for number, length in enumerate((200, 33, 90, 1, 17, 140, 61), 1)
    ]


@torch.no_grad()
def losses_of(model: Any, batches: PaddedRows | PackedRows, *, mixed: bool = False) -> torch.Tensor:
    """The loss of every learned token, in nats, document by document; mixed lets documents see each other."""
    found: dict[int, torch.Tensor] = {}
    for sequence in range(len(batches.lengths)):
        batch = batches([{"row": sequence}])
        ids, positions = batch["input_ids"].to(device()), batch["position_ids"].to(device())
        if mixed:
            positions = torch.arange(ids.shape[1], device=device())[None]
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        targets = batch["labels"][0, 1:].to(device())
        learned = targets != IGNORED
        each = cross_entropy(logits[0, :-1][learned].float(), targets[learned], reduction="none")
        counts = [len(row) - 1 for row in batch["rows"]]
        for row, losses in zip(batch["rows"], torch.split(each, counts), strict=True):
            found[row.place.row] = losses
    return torch.cat([found[number] for number in sorted(found)])


def test_the_packed_losses_are_those_of_the_documents_alone(model: Any, dtype: torch.dtype) -> None:
    rows = documents(model.config.vocab_size)
    alone = losses_of(model, PaddedRows(rows, 0))
    packs = PackedRows(rows, 0, 300)
    assert len(packs.lengths) < len(rows)
    spread = alone.std()
    assert (losses_of(model, packs) - alone).std() < MOST_OF_SPREAD[dtype] * spread
    # Documents that see each other have other losses, or all of this would show nothing.
    mixed = losses_of(model, packs, mixed=True)
    assert (mixed - alone).std() > 3 * MOST_OF_SPREAD[dtype] * spread


def test_it_is_found_out_that_the_base_keeps_documents_apart(model: Any) -> None:
    check_isolation(model)
