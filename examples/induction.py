"""Starts a small Llama with an induction circuit, so that copying is tuned and not discovered.

Copying from the prompt needs two layers to find each other: a head that carries the previous
token along, and a head that looks for where the present token came before (Olsson et al. 2022,
"In-context Learning and Induction Heads"). From random weights that takes most of a training run;
like a mimetic initialization (Trockman and Kolter 2023) this writes the pattern into the first two
layers and leaves everything to be trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

EMBEDDING_STD = 0.0625
BACK_SHARPNESS = 30.0  # scores of the heads that look back, before the division by sqrt(head_dim)
MATCH_GAIN = 2.0
CARRY_GAIN = 0.18
COPY_GAIN = 1.0
FIRST_SLOW_PAIR = 12  # rotary pairs from here on turn too slowly to blur a match in a short prompt


@torch.no_grad()
def start_with_induction(model: LlamaForCausalLM) -> None:
    """Changes the embedding and layers 0 and 1 in place; needs 4 heads, 2 key-value heads."""
    layers = model.model.layers
    _add_constant_dimension(model)
    hidden, dim = model.config.hidden_size, model.config.head_dim
    read, copy = _orthonormal(hidden, dim), _orthonormal(hidden, dim)
    carried = _orthonormal(hidden, 2 * dim)
    previous, before = carried[:, :dim], carried[:, dim:]
    _look_back(layers[0].self_attn, dim, model.config.rope_parameters["rope_theta"])
    layers[0].self_attn.v_proj.weight[:dim] = read.T
    layers[0].self_attn.o_proj.weight[:, :dim] = CARRY_GAIN * previous
    layers[0].self_attn.o_proj.weight[:, dim : 2 * dim] = CARRY_GAIN * before
    _match(layers[1].self_attn, dim, read, previous, before)
    for group in (0, 1):
        layers[1].self_attn.v_proj.weight[group * dim : (group + 1) * dim] = copy.T
        at = 2 * group * dim
        layers[1].self_attn.o_proj.weight[:, at : at + dim] = COPY_GAIN * copy


def _orthonormal(hidden: int, columns: int) -> Tensor:
    """[hidden, columns], orthonormal columns that do not touch dimension 0, the constant one."""
    mixed = torch.linalg.qr(torch.randn(hidden - 1, columns)).Q
    return torch.cat([torch.zeros(1, columns), mixed])


def _add_constant_dimension(model: LlamaForCausalLM) -> None:
    """Dimension 0 of every embedding is 1: what a query or key reads from it works as a bias."""
    embedding = model.get_input_embeddings().weight
    embedding.normal_(0.0, EMBEDDING_STD)
    embedding[:, 0] = 1.0
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            reader.weight[:, 0] = 0.0
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight[:, 0] = 0.0
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.mul_((2 * len(model.model.layers)) ** -0.5)


def _look_back(attention: LlamaAttention, dim: int, theta: float) -> None:
    """Heads 0 and 1 look one and two tokens back: a constant key, a query turned by as much."""
    hidden = attention.q_proj.in_features
    constant = (2.0 / hidden) ** -0.5  # dimension 0 after the norm
    size, half = BACK_SHARPNESS**0.5 / constant, dim // 2
    angles = theta ** (-torch.arange(half) / half)
    attention.k_proj.weight[:dim] *= 0.1
    attention.k_proj.weight[:half, 0] = size
    for head in (0, 1):
        query = attention.q_proj.weight[head * dim : (head + 1) * dim]
        query *= 0.1
        query[:half, 0] = size * torch.cos((head + 1) * angles)
        query[half:, 0] = -size * torch.sin((head + 1) * angles)


def _match(
    attention: LlamaAttention, dim: int, read: Tensor, previous: Tensor, before: Tensor
) -> None:
    """Head 0 finds what followed the present token; head 2 what followed the last two tokens."""
    slow = [*range(FIRST_SLOW_PAIR, dim // 2), *range(dim // 2 + FIRST_SLOW_PAIR, dim)]
    for group, one_token in ((0, slow), (1, slow[::2])):
        query = attention.q_proj.weight[2 * group * dim : (2 * group + 1) * dim]
        key = attention.k_proj.weight[group * dim : (group + 1) * dim]
        query.zero_()
        key.zero_()
        for row in slow:
            asks, has = (read, previous) if row in one_token else (previous, before)
            query[row] = MATCH_GAIN * asks[:, row]
            key[row] = MATCH_GAIN * has[:, row]
