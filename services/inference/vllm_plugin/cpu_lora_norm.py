"""RMS norms by vLLM's own C++ for an engine with LoRA on a CPU.

vLLM has these for CPUs and leaves them unused, since it expects the compiler to do better; with LoRA it
compiles nothing on a CPU, and a norm is then half a dozen calls of torch. Nothing else is changed.
"""

from __future__ import annotations

import torch
from vllm import ir

_PROVIDER = "graft_cpu"


def use_kernels() -> None:
    """For this process and from now on; any number of times."""
    if not all(hasattr(torch.ops._C, name) for name in ("rms_norm", "fused_add_rms_norm")):
        return
    if _PROVIDER not in ir.ops.rms_norm.impls:
        for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
            # It warns where an order was set before; another one is set below.
            op._priority_impls = []
        ir.ops.rms_norm.register_impl(_PROVIDER, supports_args=_plain)(_rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(_PROVIDER, supports_args=_plain_too, inplace=True)(
            _fused_add_rms_norm
        )
    ir.ops.rms_norm.set_default([_PROVIDER, "native"])
    ir.ops.fused_add_rms_norm.set_default([_PROVIDER, "native"])


def _plain(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return (
        variance_size is None
        and weight is not None
        and weight.dtype == x.dtype
        and x.dim() == 2
        and x.is_contiguous()
    )


def _plain_too(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return _plain(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


def _rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> torch.Tensor:
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


def _fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
