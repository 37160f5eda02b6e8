"""Several adapters of one base as one LoRA, by PEFT's add_weighted_adapter; what it cannot do is refused in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.peft_models import config_json, write_adapter
from services.trainer.spec.recipe import Combining

COMBINED = "combined"


def check_combinable(
    model: Any, names: Sequence[str], every: Sequence[Pulled], how: Combining
) -> None:
    """Refuses what cannot be combined, before anything is computed.

    Raises:
        GraftError: INVALID_SPEC, naming the version.
    """
    ranks = {}
    for name, pulled in zip(names, every, strict=True):
        config = model.peft_config[name]
        why = _not_plain(config)
        if why:
            raise _refused(
                f"{pulled.version.name} {why}, and cannot be combined with others",
                "Make a plain LoRA of it first: graft convert.",
            )
        ranks[pulled.version.name] = max([config.r, *config.rank_pattern.values()])
    if how.needs_equal_ranks and len(set(ranks.values())) > 1:
        said = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        wide = "svd" if how.kind == "linear" else f"{how.kind}_svd"
        raise _refused(
            f"{how.kind} adds A to A and B to B, which needs equal ranks: {said}",
            f"Use {wide} or cat, which take any ranks.",
        )


def _not_plain(config: Any) -> str:
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return f"is no LoRA but {config.peft_type}"
    if config.use_dora:
        return "is a DoRA"
    if config.modules_to_save:
        return f"has whole modules ({', '.join(sorted(config.modules_to_save))})"
    if config.bias != "none" or getattr(config, "lora_bias", False):
        return "has trained biases"
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith("pissa"):
        return "is an unconverted PiSSA, which is an update of another base"
    return ""


def combine(model: Any, names: Sequence[str], weights: Sequence[float], how: Combining) -> None:
    """Adds the adapter COMBINED to the model, and makes it the active one.

    Raises:
        GraftError: INVALID_SPEC, with what PEFT says.
    """
    # The layers know every adapter's scale; the new one's is alpha / rank = 1, not alpha / sqrt(rank).
    first = names[0]
    model.peft_config[first] = replace(model.peft_config[first], use_rslora=False)
    torch.manual_seed(how.seed)
    try:
        model.add_weighted_adapter(
            list(names),
            list(weights),
            COMBINED,
            combination_type=how.kind,
            svd_rank=how.rank or None,
            svd_full_matrices=False,
            density=how.density,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise _refused(
            f"The adapters cannot be combined by {how.kind}: {why}",
            "Use svd or cat, or adapters of one shape.",
        ) from None
    model.set_adapter(COMBINED)


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


def save_combined(model: Any, folder: Path) -> None:
    """Writes the combined adapter in PEFT's layout.

    Raises:
        GraftError: INVALID_SPEC, when a number is not finite.
    """
    weights = get_peft_model_state_dict(model, adapter_name=COMBINED, save_embedding_layers=False)
    write_adapter(weights, config_json(model.peft_config[COMBINED]), folder)


def _refused(what: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_SPEC, what, next_step=next_step, field="combination")
