"""Adds adapters to a layer's output, for a batch of several slots. Plain torch; knows nothing of vLLM.

Two ways, which differ only in speed. Together: one product with the A of all slots, what is not of a
token's own slot set to zero, one product with the B of all slots. That is the least number of calls, and
computes slots times too much. One by one: a pair of products for each slot of the step, with its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_paged_weights import PagedContent, PagedWeights
from services.inference.vllm_plugin.cpu_lora_weights import Content, LayerWeights

Weights = LayerWeights | PagedWeights

# Multiplications in vain that take as long as one call; measured on two cores, see docs/cpu-lora.md.
_PER_CALL = {torch.bfloat16: 30_000_000}
_PER_CALL_ELSE = 5_000_000


def add_adapters(
    y: torch.Tensor, x: torch.Tensor, weights: Weights, groups: TokenGroups, scale: float = 1.0
) -> None:
    """y += x @ A @ B * scale, with the A and B of each token's slot; other tokens stay as they are.

    Args:
        y: [tokens, out]; may have more columns than B, and fewer where B is padded.
        x: [tokens, in], of the same data type as y and the weights.
    """
    if not groups.active:
        return
    content = weights.content_of(groups)
    if not content.holds(groups.active):
        return
    if not together_pays(x, content, groups):
        _add_one_by_one(y, x, content, groups, scale)
    elif content.packed is not None and scale == 1 and content.packed.stop <= y.shape[1]:
        packed = content.packed
        own = content.own(groups, packed.columns, packed.slices, x.dtype)
        packed.add(y, x, own, groups.low_of(own))
    else:
        _add_together(y, x, weights.content(), groups, scale)


def added(x: torch.Tensor, columns: int, weights: Weights, groups: TokenGroups) -> torch.Tensor:
    """x @ A @ B, with the A and B of each token's slot; zero for other tokens.

    Args:
        x: [tokens, in], of the same data type as the weights.

    Returns:
        [tokens, columns]
    """
    content = weights.content_of(groups)
    own = groups.own_of(content, lambda: _mask_of_packed(x, columns, content, groups))
    if own is not None and content.packed is not None:
        return content.packed.product(x, own, groups.low_of(own))
    y = x.new_zeros(x.shape[0], columns)
    add_adapters(y, x, weights, groups)
    return y


def _mask_of_packed(
    x: torch.Tensor, columns: int, content: Content | PagedContent, groups: TokenGroups
) -> torch.Tensor | None:
    """None where the packed weights are none, do not fill the output, or are not the faster way."""
    packed = content.packed
    if packed is None or (packed.start, packed.stop) != (0, columns):
        return None
    if not content.holds(groups.active) or not together_pays(x, content, groups):
        return None
    return content.own(groups, packed.columns, packed.slices, x.dtype)


def together_pays(x: torch.Tensor, content: Content | PagedContent, groups: TokenGroups) -> bool:
    """Whether computing all slots for every token is no dearer than the calls that it saves."""
    # Zero times the NaN of another's B would be NaN: such an adapter must meet its own tokens alone.
    # In float16 what overflows need not be large.
    if not content.tame or x.dtype == torch.float16:
        return False
    inside = x.shape[1] * len(content.slices) + sum(
        each.stop - each.start for each in content.slices
    )
    in_vain = x.shape[0] * inside * content.wasted
    # Per slot: its tokens of x and y are picked and put back, and two products per slice.
    calls = len(groups.active) * (2 * len(content.slices) + 3) - (2 * len(content.slices) + 1)
    return in_vain <= calls * _PER_CALL.get(x.dtype, _PER_CALL_ELSE)


def _add_together(
    y: torch.Tensor,
    x: torch.Tensor,
    content: Content | PagedContent,
    groups: TokenGroups,
    scale: float,
) -> None:
    own = content.own(groups, content.slices[0].a.shape[1], 1, x.dtype)
    for part in content.slices:
        low = torch.mm(x, part.a).mul_(own)
        y[:, part.start : part.stop].addmm_(low, part.b[:, : y.shape[1]], alpha=scale)


def _add_one_by_one(
    y: torch.Tensor,
    x: torch.Tensor,
    content: Content | PagedContent,
    groups: TokenGroups,
    scale: float,
) -> None:
    for slot, rows in groups.rows():
        if not content.holds((slot,)):
            continue
        its_x, its_y = x[rows], y[rows]
        for start, stop, a, b in content.of(slot):
            its_y[:, start:stop].addmm_(torch.mm(its_x, a), b[:, : y.shape[1]], alpha=scale)
        if isinstance(rows, torch.Tensor):
            y[rows] = its_y


def add_in_float32(
    y: torch.Tensor, x: torch.Tensor, weights: Weights, groups: TokenGroups, scale: float = 1.0
) -> None:
    """As add_adapters, for any data types."""
    content = weights.content()
    for slot, rows in groups.rows():
        its_x, its_y = x[rows].float(), y[rows]
        for start, stop, a, b in content.of(slot):
            more = its_x @ a.float() @ b[:, : y.shape[1]].float()
            its_y[:, start:stop] += (more * scale).to(y.dtype)
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
