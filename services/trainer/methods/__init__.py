"""Methods: how a base gets parameters that are trained. One file each; METHODS is the list of them."""

from __future__ import annotations

from typing import Any

from services.trainer.methods.adalora import AdaLora
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Setting, Use
from services.trainer.methods.bottleneck import Bottleneck
from services.trainer.methods.dora import Dora
from services.trainer.methods.full import Full
from services.trainer.methods.ia3 import Ia3
from services.trainer.methods.lora import Lora
from services.trainer.methods.lora_plus import LoraPlus
from services.trainer.methods.p_tuning import PTuning
from services.trainer.methods.p_tuning_v2 import PTuningV2
from services.trainer.methods.pissa import Pissa
from services.trainer.methods.prefix_tuning import PrefixTuning
from services.trainer.methods.prompt_tuning import PromptTuning
from services.trainer.methods.qlora import QLora
from services.trainer.methods.rslora import RsLora

_ALL: tuple[type[Method[Any]], ...] = (
    Lora,
    RsLora,
    LoraPlus,
    Dora,
    Pissa,
    AdaLora,
    QLora,
    Full,
    Ia3,
    PromptTuning,
    PTuning,
    PTuningV2,
    PrefixTuning,
    Bottleneck,
)
METHODS: dict[str, type[Method[Any]]] = {method.info.kind: method for method in _ALL}

__all__ = ["METHODS", "Lora", "Method", "MethodConfig", "MethodInfo", "Setting", "Use"]
