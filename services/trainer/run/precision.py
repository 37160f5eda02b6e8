"""What a step is computed in and with: precision, compiled layers, kernels; and what this machine has for them."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers.modeling_layers import GradientCheckpointingLayer

from services.trainer.spec.hyperparameters import Hyperparameters

_COMPILERS = ("g++", "c++", "clang++")
_BACKEND = "inductor"


def precision_of(hyper: Hyperparameters, cuda: bool) -> str:
    """fp32, bf16 or fp16: what the spec says, or by itself what this device is good at."""
    if hyper.precision != "auto":
        return hyper.precision
    return "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"


def check_machine(hyper: Hyperparameters, cuda: bool) -> None:
    """Checks that this machine has what the spec asks for.

    Raises:
        GraftError: INVALID_SPEC, naming the field, what is missing and what works here.
    """
    if hyper.precision == "fp16" and not cuda:
        raise _missing(
            "precision",
            "fp16",
            "needs an accelerator: its loss scaler and its matrix products are not there on a CPU",
            'Use "bf16" or "fp32", or leave it out.',
        )
    if hyper.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise _missing(
            "precision",
            "bf16",
            f"is not known to {torch.cuda.get_device_name()}",
            'Use "fp16" or "fp32", or leave it out.',
        )
    if hyper.kernels == "liger":
        _check_liger(cuda)
    if hyper.torch_compile and not _compiler():
        raise _missing(
            "torch_compile",
            True,
            f"needs a C++ compiler, and none of {', '.join(_COMPILERS)} is on this machine's PATH",
            "Install one (Debian: apt-get install g++), name one in CXX, or leave it out.",
        )


def _check_liger(cuda: bool) -> None:
    if not cuda:
        raise _missing(
            "kernels",
            "liger",
            "needs an accelerator: its kernels are Triton's",
            'Leave it out: on a CPU "none" is all there is.',
        )
    if find_spec("liger_kernel") is None:
        raise _missing(
            "kernels",
            "liger",
            "needs the package liger-kernel, which is not installed where this worker runs",
            "Install liger-kernel beside the worker, or leave it out.",
        )


def _compiler() -> str:
    named = os.environ.get("CXX", "")
    return next((found for one in (named, *_COMPILERS) if one and (found := shutil.which(one))), "")


def quicken(model: Any, hyper: Hyperparameters) -> None:
    """Gives a model the kernels and compiled layers that the spec asks for; its numbers' names stay as they are."""
    if hyper.kernels == "liger":
        from transformers.integrations.liger import apply_liger_kernel

        # The losses are ours and TRL's, which keep to what is learned of a row.
        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if hyper.torch_compile:
        # Layer by layer: they are alike, so that one of them is compiled and used for all.
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(backend=_BACKEND, dynamic=True)


def _missing(field: str, given: object, why: str, next_step: str) -> GraftError:
    path = f"hyperparameters.{field}"
    return GraftError(
        Reason.INVALID_SPEC, f"{path} is {given!r}, which {why}", next_step=next_step, field=path
    )
