"""Takes a base's own dropout away, for objectives that hold the model against it as a reference."""

from __future__ import annotations

from typing import Any

import torch


def without_own_dropout(model: Any) -> Any:
    """The same base, whose layers drop nothing while it trains; else its reference would differ from pass to pass.

    A method's dropout, which is asked for in the spec, is added later and stays. It goes by modules and the
    attribute that transformers' attention layers have, so a saved config keeps what the base says.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model
