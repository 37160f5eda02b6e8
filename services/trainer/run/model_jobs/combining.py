"""Several adapters of one base as one LoRA, on the model that proves it; what cannot be done is refused in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graft.blends import Combining
from graft.errors import GraftError, Reason
from peft.tuners.lora import LoraLayer

from services.combining.folders import combine_folders
from services.combining.plain import NotCombinableError, Source
from services.trainer.run.model_jobs.pulled import Pulled

COMBINED = "combined"


def combine(
    model: Any, every: Sequence[Pulled], weights: Sequence[float], how: Combining, folder: Path
) -> int:
    """Writes the combination to a folder, and makes it the model's active adapter COMBINED; returns its rank.

    Raises:
        GraftError: INVALID_SPEC, naming the version.
    """
    sources = [
        Source(one.version.name, one.folder, weight)
        for one, weight in zip(every, weights, strict=True)
    ]
    try:
        rank = combine_folders(sources, how, folder)
    except NotCombinableError as error:
        raise GraftError(
            Reason.INVALID_SPEC, str(error), next_step=error.next_step, field="combination"
        ) from None
    model.load_adapter(str(folder), adapter_name=COMBINED)
    model.set_adapter(COMBINED)
    return rank


@contextmanager
def exact_sum(model: Any, names: Sequence[str], weights: Sequence[float]) -> Iterator[None]:
    """While inside, the model computes with the weighted sum of the adapters' updates."""
    scales = []
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for name, weight in zip(names, weights, strict=True):
            if name in layer.scaling:
                scales.append((layer, name, layer.scaling[name]))
                layer.scaling[name] *= weight
    model.base_model.set_adapter(list(names))
    try:
        yield
    finally:
        for layer, name, scale in scales:
            layer.scaling[name] = scale
        model.set_adapter(COMBINED)
