"""DoRA's scale of each output feature, magnitude / ||W + scaling * B A||, from what a layer computes.

vLLM packs weights for its kernels, or keeps them quantized, so W itself is not always there to be read. The
norm is taken apart: ||W||^2 + 2 W.(BA) + ||BA||^2, by rows. ||W||^2 comes from the layer's products with
unit vectors, once in an engine's life; W.(BA) from its products with the few rows of A, once for an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

# Unit vectors that go through a layer at once, as so many tokens of a prompt would.
_AT_ONCE = 512
# Called with [tokens, in]; gives [tokens, out], without the bias.
Product = Callable[[torch.Tensor], torch.Tensor]


def squares(
    product: Product, inputs: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The squared norm of each row of a layer's weight, [out], in float64."""
    total: torch.Tensor | None = None
    for start in range(0, inputs, _AT_ONCE):
        count = min(_AT_ONCE, inputs - start)
        units = torch.zeros(count, inputs, dtype=dtype, device=device)
        units[torch.arange(count), start + torch.arange(count)] = 1
        part = product(units).double().square_().sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None, "a layer without inputs"
    return total


def squares_with(
    base: torch.Tensor, products: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The squared norm of each row of W + BA, [out].

    Args:
        base: that of W, [out].
        products: A W^T, [rank, out].
        a: [rank, in].
        b: [out, rank], scaled.
    """
    a, b = a.double(), b.double()
    both = (products.double().t() * b).sum(1)
    alone = ((b @ (a @ a.t())) * b).sum(1)
    return (base + 2 * both + alone).clamp_(min=0)


def scales_above_one(
    magnitudes: Sequence[torch.Tensor | None], norms_squared: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """magnitude / norm - 1, per slice of a layer; None where a slice has no adapter."""
    return [
        None if magnitude is None or squared is None else magnitude.double() / squared.sqrt() - 1
        for magnitude, squared in zip(magnitudes, norms_squared, strict=True)
    ]
