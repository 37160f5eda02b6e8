"""What an adapter_config.json says about being combined with others. No torch here: services ask before they start work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.blends import Combining

TEMPLATE = "chat_template.jinja"
# They begin with an update of another base, and vLLM takes none of them either.
_MUTATED = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter's folder; name is for errors."""

    name: str
    folder: Path
    weight: float


def template_of(sources: Sequence[Source]) -> Path | None:
    """The chat template that a combination brings: that of the heaviest, the first of several; None for none."""
    heaviest = max(sources, key=lambda one: abs(one.weight))
    template = heaviest.folder / TEMPLATE
    return template if template.is_file() else None


class NotCombinableError(Exception):
    """What cannot be combined, and why.

    Attributes:
        next_step: what to do about it, as a sentence.
    """

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what)
        self.next_step = next_step


def check_plain(name: str, config: Mapping[str, Any]) -> None:
    """Returns for a LoRA that is nothing but products of A and B.

    Args:
        name: of the adapter, for the error.

    Raises:
        NotCombinableError: naming it.
    """
    why = _not_plain(config)
    if why:
        raise NotCombinableError(
            f"{name} {why}, and cannot be combined with others",
            "Make a plain LoRA of it first: graft convert.",
        )


def _not_plain(config: Mapping[str, Any]) -> str:
    begins = config.get("init_lora_weights")
    if config.get("peft_type") != "LORA":
        return f"is no LoRA but {config.get('peft_type')}"
    if config.get("use_dora"):
        return "is a DoRA"
    if config.get("modules_to_save"):
        return f"has whole modules ({', '.join(sorted(config['modules_to_save']))})"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "has trained biases"
    if config.get("target_parameters"):
        return "updates parameters that are no layers"
    if isinstance(begins, str) and begins.startswith(_MUTATED):
        return f"is an unconverted {begins}, which is an update of another base"
    return ""


def largest_rank(config: Mapping[str, Any]) -> int:
    """The rank as PEFT counts it: the largest that any module may have."""
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def check_ranks(ranks: Mapping[str, int], how: Combining) -> None:
    """Refuses unequal ranks where equal ones are needed, before anything is computed.

    Args:
        ranks: by the adapters' names.

    Raises:
        NotCombinableError: naming all of them.
    """
    if how.needs_equal_ranks and len(set(ranks.values())) > 1:
        said = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        wide = "svd" if how.kind == "linear" else f"{how.kind}_svd"
        raise NotCombinableError(
            f"{how.kind} adds A to A and B to B, which needs equal ranks: {said}",
            f"Use {wide} or cat, which take any ranks.",
        )


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's B @ A by.

    Args:
        module: its path in the base, "model.layers.0.self_attn.q_proj".
        rank: of its A and B.
    """
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
