"""Methods: how a base gets parameters that are trained. One file each; METHODS is the list of them."""

from __future__ import annotations

from typing import Any

from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Setting, Use
from services.trainer.methods.lora import Lora

METHODS: dict[str, type[Method[Any]]] = {method.info.kind: method for method in (Lora,)}

__all__ = ["METHODS", "Lora", "Method", "MethodConfig", "MethodInfo", "Setting", "Use"]
