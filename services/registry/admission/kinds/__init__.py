"""Kinds of adapters beside LoRA: for each, which tensors its configuration and its base ask for."""

from __future__ import annotations

from services.registry.admission.kinds.adalora import AdaLora
from services.registry.admission.kinds.base import Expected, Kind, check_common
from services.registry.admission.kinds.bottleneck import Bottleneck
from services.registry.admission.kinds.compare import compare
from services.registry.admission.kinds.ia3 import Ia3
from services.registry.admission.kinds.prompts import PrefixTuning, PromptTuning, PTuning

KINDS: dict[str, Kind] = {
    kind.peft_type: kind
    for kind in (AdaLora(), Ia3(), PromptTuning(), PTuning(), PrefixTuning(), Bottleneck())
}

__all__ = ["KINDS", "Expected", "Kind", "check_common", "compare"]
