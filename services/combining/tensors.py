"""The arithmetic of combining LoRA updates, module by module, on tensors alone.

Every kind computes what PEFT's add_weighted_adapter of the same name does. Where that decomposes a sum of
updates, the sum is never made here: the product of two thin matrices has its singular values in a small one.
Sources: TIES, Yadav et al. 2023, arXiv:2306.01708; DARE, Yu et al. 2023, arXiv:2311.03099.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from graft.blends import Combining

# Wider matrices are cut by randomized iterations; a full decomposition of them takes minutes.
_WIDEST_FULL = 2048
_ITERATIONS = 8
Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Update:
    """One adapter's update of one module: weight * scale * b @ a, with a [rank, in] and b [out, rank]."""

    a: Tensor
    b: Tensor
    scale: float
    weight: float

    @property
    def change(self) -> Tensor:
        """The update without its weight, [out, in]."""
        return self.b @ self.a * self.scale


def combined(updates: Sequence[Update], how: Combining, rank: int, draws: torch.Generator) -> Pair:
    """A [rank, in] and B [out, rank] of one module, at scale 1.

    Args:
        updates: at least one; of equal ranks where how needs them.
        rank: of the result; what it does not fill is 0.
        draws: of dare, which takes one number for each of the updates'.
    """
    if how.kind == "cat":
        a = torch.cat([one.a * one.weight * one.scale for one in updates])
        b = torch.cat([one.b for one in updates], dim=1)
    elif how.kind == "svd":
        a, b = _cut_sum(updates, rank)
    elif how.chooses_rank:
        weights = [one.weight for one in updates]
        a, b = cut(_mixed([one.change for one in updates], weights, how, draws), rank)
    else:
        # The roots, so that their product is the weight; its sign on one side alone.
        factors = [one.weight * one.scale for one in updates]
        roots = [abs(factor) ** 0.5 for factor in factors]
        signed = [
            root if factor >= 0 else -root for root, factor in zip(roots, factors, strict=True)
        ]
        a = _mixed([one.a for one in updates], signed, how, draws)
        b = _mixed([one.b for one in updates], roots, how, draws)
    return filled(a, 0, rank), filled(b, 1, rank)


def cut(change: Tensor, rank: int) -> Pair:
    """A [rank or fewer, in] and B [out, same], whose product is nearest to a change [out, in]."""
    kept = min(rank, *change.shape)
    if min(change.shape) <= _WIDEST_FULL:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(kept + 16, *change.shape), niter=_ITERATIONS)
        vh = v.T
    return _halves(u, s, vh, kept)


def _cut_sum(updates: Sequence[Update], rank: int) -> Pair:
    """As cut() of the weighted sum, by way of its thin factors."""
    a = torch.cat([one.a * (one.weight * one.scale) for one in updates])
    b = torch.cat([one.b for one in updates], dim=1)
    right, small_right = torch.linalg.qr(a.T)
    left, small_left = torch.linalg.qr(b)
    u, s, vh = torch.linalg.svd(small_left @ small_right.T, full_matrices=False)
    return _halves(left @ u, s, vh @ right.T, min(rank, len(s)))


def _halves(u: Tensor, s: Tensor, vh: Tensor, kept: int) -> Pair:
    root = s[:kept].sqrt()
    return root[:, None] * vh[:kept], u[:, :kept] * root


def _mixed(
    tensors: Sequence[Tensor], weights: Sequence[float], how: Combining, draws: torch.Generator
) -> Tensor:
    kind = how.kind.removesuffix("_svd")
    if how.density < 1:
        drop = _drops(kind, how.density, draws)
        tensors = [drop(one) for one in tensors]
    stacked = torch.stack(list(tensors))
    weighted = stacked * torch.tensor(weights).view(-1, *[1] * (stacked.dim() - 1))
    if not kind.endswith("ties"):
        return weighted.sum(dim=0)
    elected = torch.where(stacked.sum(dim=0) >= 0, 1, -1)
    agrees = stacked.sign() == elected
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1.0)


def _drops(kind: str, density: float, draws: torch.Generator) -> Callable[[Tensor], Tensor]:
    def at_random(tensor: Tensor) -> Tensor:
        kept = torch.bernoulli(torch.full_like(tensor, density), generator=draws)
        return tensor * kept / density

    def the_small(tensor: Tensor) -> Tensor:
        kept = torch.zeros_like(tensor).reshape(-1)
        kept[tensor.abs().reshape(-1).topk(int(density * tensor.numel())).indices] = 1
        return tensor * kept.reshape(tensor.shape)

    if kind == "linear":
        return lambda tensor: tensor
    return at_random if kind.startswith("dare") else the_small


def filled(tensor: Tensor, dim: int, size: int) -> Tensor:
    """With zeros up to a size: a narrow layer, or an adapter that leaves it out, has no more rank."""
    missing = list(tensor.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=dim).contiguous()
