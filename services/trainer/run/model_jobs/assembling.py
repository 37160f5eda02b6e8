"""The models that a merge begins with: the trained one as it was trained, and a plain base that can be merged into.

A merge goes into a freshly loaded, dequantized base. A quantized base that has answered once in evaluation mode
may hold its weights in another layout (bitsandbytes repacks them for AVX512), which PEFT merges wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from safetensors import SafetensorError

from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.models import keep_layout, load_model
from services.trainer.spec import BaseSpec


def trained_model(pulled: Pulled) -> Any:
    """The model as it was trained, on a base that is quantized as it was, with arithmetic in float32.

    Raises:
        GraftError: NOT_A_MODEL; INVALID_SPEC, when the adapter cannot be put on the base.
    """
    with adapter_errors(pulled):
        adapter = pulled.folder if pulled.is_adapter else None
        return assembled(pulled.base.folder, pulled.base_spec, adapter)


def assembled(base: Path, spec: BaseSpec, adapter: Path | None) -> Any:
    """A base as the spec holds it, with a PEFT adapter or without, computing in float32.

    Of a base in 8 bits the values are taken without bitsandbytes' arithmetic, which rounds activations as well.
    """
    from peft import PeftModel

    model = load_model(base, spec)
    if spec.quantization == "int8":
        model = model.dequantize(dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    keep_layout(model)
    in_float32(model)
    return model


def in_float32(model: Any) -> None:
    """Has a model compute in float32; packed weights stay as they are."""
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


def plain_base(pulled: Pulled) -> Any:
    """The base in float32, with the values that it had while it was trained on: freshly loaded and dequantized.

    Raises:
        GraftError: NOT_A_MODEL; NOT_SUPPORTED, when its quantization cannot be undone.
    """
    model = load_model(pulled.base.folder, pulled.base_spec)
    return dequantized(model, pulled.base.record.name)


def dequantized(model: Any, name: str) -> Any:
    """A model's values as float32; it must not have answered anything yet.

    Raises:
        GraftError: INTERNAL for a repacked one; NOT_SUPPORTED.
    """
    refuse_repacked(model)
    if getattr(model, "hf_quantizer", None) is not None:
        try:
            model = model.dequantize(dtype=torch.float32)
        except (NotImplementedError, ValueError) as error:
            raise GraftError(
                Reason.NOT_SUPPORTED,
                f"The quantization of {name} cannot be undone ({error})",
                next_step="Merge into a base that is quantized by bitsandbytes, or not at all.",
            ) from None
    in_float32(model)
    return model


def refuse_repacked(model: Any) -> None:
    """Refuses a model whose quantized weights were repacked for inference.

    Raises:
        GraftError: INTERNAL, naming the module.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise GraftError(
                Reason.INTERNAL,
                f"The weights of {name} are repacked for inference, and a merge into them would be wrong",
                next_step="Load the base anew, and merge before it answers anything.",
            )


def with_adapter(model: Any, pulled: Pulled) -> Any:
    """The base with one adapter, called "default".

    Raises:
        GraftError: INVALID_SPEC.
    """
    from peft import PeftModel

    with adapter_errors(pulled):
        return PeftModel.from_pretrained(model, str(pulled.folder))


def with_adapters(model: Any, every: Sequence[Pulled]) -> tuple[Any, list[str]]:
    """The base with several adapters, and the names that they have there.

    Raises:
        GraftError: INVALID_SPEC.
    """
    from peft import PeftModel

    names = [f"source-{number}" for number in range(len(every))]
    first, *others = zip(names, every, strict=True)
    with adapter_errors(first[1]):
        adapted = PeftModel.from_pretrained(model, str(first[1].folder), adapter_name=first[0])
    for name, pulled in others:
        with adapter_errors(pulled):
            adapted.load_adapter(str(pulled.folder), adapter_name=name)
    return adapted, names


@contextmanager
def adapter_errors(pulled: Pulled) -> Iterator[None]:
    """Turns what PEFT and safetensors say of files that do not fit into an error that names the version."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, RuntimeError) and "loading state_dict" not in why:
            raise  # Memory that ran out, for one.
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{pulled.version.name} cannot be put on {pulled.base.record.name}: {why}",
            next_step="Check that it is whole (`graft adapters show`), and of this base.",
            field="version",
        ) from None
