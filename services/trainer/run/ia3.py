"""IA3's targets: keys, values and the MLP's last layer, whatever an architecture calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft.errors import GraftError, Reason
from peft import IA3Config

from services.trainer.methods.base import Setting
from services.trainer.run.targets import check_targets, is_transposed, linear_layers

# Names of keys, values, or of the layer that makes both together with the queries.
_KEYS_VALUES = (
    "k_proj",
    "v_proj",
    "key",
    "value",
    "c_attn",
    "qkv_proj",
    "query_key_value",
    "Wqkv",
)
_LAST_OF_MLP = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "c_proj", "wo", "w2")


def peft_config(
    model: Any, setting: Setting, targets: Sequence[str], feedforward: Sequence[str]
) -> IA3Config:
    """PEFT's configuration for a model.

    Raises:
        GraftError: INVALID_SPEC, for names that it does not have, or an architecture that is not known.
    """
    if targets:
        check_targets(model, targets, "ia3")
        chosen, inner = list(targets), list(feedforward)
    else:
        inner = _ends(model, _LAST_OF_MLP, ("mlp", "feed_forward", "ffn"))
        chosen = _ends(model, _KEYS_VALUES, ()) + inner
        if not inner or len(chosen) == len(inner):
            raise GraftError(
                Reason.INVALID_SPEC,
                f"What IA3 scales in a {model.config.model_type} is not known",
                next_step="Name keys and values in method.ia3.target_modules, and the MLP's last layer in "
                "it and in feedforward_modules.",
                field="method.ia3.target_modules",
            )
    return IA3Config(
        task_type=setting.task_type,
        target_modules=chosen,
        feedforward_modules=inner,
        fan_in_fan_out=is_transposed(model, chosen),
    )


def _ends(model: Any, names: Sequence[str], parents: Sequence[str]) -> list[str]:
    """The ends of layers' paths that have such a name, and such a parent where some are given."""
    found = set()
    for path in linear_layers(model):
        parts = path.split(".")
        if parts[-1] in names and (not parents or parts[-2] in parents):
            found.add(".".join(parts[-2:]) if parents else parts[-1])
    return sorted(found)
