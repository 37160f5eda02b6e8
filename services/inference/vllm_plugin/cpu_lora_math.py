"""Adds adapters to a layer's output, batch of several slots at once. Plain torch; knows nothing of vLLM.

Two ways, which differ only in speed. Together: one product with the A of all slots, what does not belong
to a token set to zero, one product with the B of all slots. That is the least number of calls, and
computes slots times too much. One by one: a pair of products for each slot of the step, with its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_weights import LayerWeights, Needed

# Multiplications that are done in the time that a further call takes; measured, see docs/cpu-lora.md.
_PER_CALL = 2_000_000


def add_adapters(
    y: torch.Tensor, x: torch.Tensor, weights: LayerWeights, groups: TokenGroups, scale: float = 1.0
) -> None:
    """y += x @ A @ B * scale, with the A and B of each token's slot; other tokens stay as they are.

    Args:
        y: [tokens, out]; may have more columns than B, and fewer where B is padded.
        x: [tokens, in], of the same data type as y and the weights.
    """
    if not groups.active:
        return
    needed = weights.needed(groups.active)
    if not needed.rank:
        return
    if len(groups.active) == 1 or not _together_pays(y, x, weights, needed, groups):
        _add_one_by_one(y, x, weights, needed, groups, scale)
    else:
        _add_together(y, x, needed, groups, scale)


def _together_pays(
    y: torch.Tensor, x: torch.Tensor, weights: LayerWeights, needed: Needed, groups: TokenGroups
) -> bool:
    # Zero times the NaN of another's B would be NaN: such an adapter must meet its own tokens alone.
    if not needed.all_finite:
        return False
    per_rank = sum(x.shape[1] + part.stop - part.start for part in needed.slices)
    in_vain = x.shape[0] * needed.rank * (weights.slots - 1) * per_rank
    calls = (len(groups.active) - 1) * (2 * len(needed.slices) + 2)
    return in_vain <= calls * _PER_CALL


def _add_together(
    y: torch.Tensor, x: torch.Tensor, needed: Needed, groups: TokenGroups, scale: float
) -> None:
    others = groups.others(needed.rank)
    for part in needed.slices:
        low = torch.mm(x, part.a).masked_fill_(others, 0)
        y[:, part.start : part.stop].addmm_(low, part.b[:, : y.shape[1]], alpha=scale)


def _add_one_by_one(
    y: torch.Tensor,
    x: torch.Tensor,
    weights: LayerWeights,
    needed: Needed,
    groups: TokenGroups,
    scale: float,
) -> None:
    for slot, rows in groups.rows():
        its_x, its_y = x[rows], y[rows]
        for part in needed.slices:
            a, b = part.of(slot, weights.slots)
            its_y[:, part.start : part.stop].addmm_(
                torch.mm(its_x, a), b[:, : y.shape[1]], alpha=scale
            )
        if isinstance(rows, torch.Tensor):
            y[rows] = its_y


def shrink(
    y: Sequence[torch.Tensor],
    x: torch.Tensor,
    a: Sequence[torch.Tensor],
    groups: TokenGroups,
    scale: float,
) -> None:
    """y[slice] = x @ A * scale, per slice; zero for a token without an adapter. For any data types.

    Args:
        y: per slice [tokens, rank].
        a: per slice [slots, 1, rank, in], in any layout.
    """
    for its_y, its_a in zip(y, a, strict=True):
        its_y.zero_()
        for slot, rows in groups.rows():
            weight = its_a[slot].flatten(0, -2)
            its_y[rows, : weight.shape[0]] = (
                x[rows].to(its_y.dtype) @ weight.to(its_y.dtype).t()
            ) * scale


def expand(
    y: torch.Tensor, x: torch.Tensor, b: torch.Tensor, groups: TokenGroups, *, add: bool = True
) -> None:
    """y += x @ B, or y = x @ B with add=False, which is zero for a token without an adapter.

    Args:
        y: [tokens, out], of any data type.
        x: [tokens, rank].
        b: [slots, 1, out, rank], in any layout; out may differ from that of y, which is padding.
    """
    if not add:
        y.zero_()
    columns = min(y.shape[1], b.shape[-2])
    for slot, rows in groups.rows():
        weight = b[slot].flatten(0, -2)[:columns].to(y.dtype)
        y[rows, :columns] += x[rows].to(y.dtype) @ weight.t()
