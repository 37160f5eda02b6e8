"""Reads adapter_config.json and refuses what an engine would refuse or, worse, serve wrongly.

The list of what vLLM cannot serve is vllm/lora/peft_helper.py's, and what it ignores silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError

from services.registry.errors import refused

CHECK = "adapter-config"
# They set only the adapter's first weights; others (PiSSA, OLoRA, CorDA, LoftQ) change the base.
_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_UNSERVABLE = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on LoRA's matrices",
    "modules_to_save": "fully trained modules",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "targets that are parameters and not modules",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
# A plain module name or path; "^" anchors it. Others would be patterns of unbounded cost.
_PLAIN = re.compile(r"\^?[A-Za-z0-9_]+(?:\\?\.[A-Za-z0-9_]+)*")
_MAX_ALPHA = 1e9
_FIX = "Correct adapter_config.json: it must say what the tensors are."


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter says of itself.

    targets is None where target_modules is a pattern or "all-linear": then the tensors decide.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | None
    ranks: Mapping[str, int]

    def rank_of(self, module: str) -> int:
        """The rank of a module: by the first entry of rank_pattern that names it, as PEFT has it."""
        for key, rank in self.ranks.items():
            if names(key, module):
                return rank
        return self.rank

    @property
    def max_rank(self) -> int:
        """The largest rank that it speaks of."""
        return max([self.rank, *self.ranks.values()])


def names(key: str, module: str) -> bool:
    """Whether key is a module's path or a suffix of it that begins at a dot."""
    return module == key.removeprefix("^") or (key[:1] != "^" and module.endswith("." + key))


def read_config(text: bytes) -> AdapterConfig:
    """What adapter_config.json says.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    config = _parse(text)
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise _refused(
            f"peft_type is {peft_type!r}",
            "This registry takes LoRA adapters: train with method lora or qlora.",
        )
    _refuse_unservable(config)
    return AdapterConfig(
        rank=_rank("r", config.get("r")),
        alpha=_alpha("lora_alpha", config.get("lora_alpha")),
        targets=_targets(config.get("target_modules")),
        ranks={
            _plain("rank_pattern", key): _rank(f"rank_pattern[{key!r}]", rank)
            for key, rank in _pattern(config, "rank_pattern").items()
        },
    )


def _parse(text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _refused("It is not a JSON object in UTF-8", _FIX)
    return config


def _refuse_unservable(config: dict[str, Any]) -> None:
    for field, what in _UNSERVABLE.items():
        if config.get(field):
            raise _refused(
                f"{field} is set: it uses {what}, which the engine cannot serve",
                "Merge it into a base, or train a plain LoRA.",
            )
    if config.get("bias", "none") != "none":
        raise _refused(
            f"bias is {config['bias']!r}: trained biases cannot be served",
            'Train with bias="none".',
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _INITS:
        raise _refused(
            f"init_lora_weights is {init!r}: such an adapter fits only a changed base",
            "Convert it: save_pretrained with path_initial_model_for_weight_conversion.",
        )
    for key, alpha in _pattern(config, "alpha_pattern").items():
        _alpha(f"alpha_pattern[{_plain('alpha_pattern', key)!r}]", alpha)


def _pattern(config: dict[str, Any], field: str) -> dict[str, Any]:
    found = config.get(field) or {}
    if not isinstance(found, dict):
        raise _refused(f"{field} is not an object", _FIX)
    return found


def _plain(field: str, key: str) -> str:
    if len(key) > 512 or _PLAIN.fullmatch(key) is None:
        raise _refused(
            f"{field} has the key {key[:120]!r}, a regular expression",
            "Name the modules by their path or the end of it.",
        )
    return key.replace("\\.", ".")


def _alpha(field: str, alpha: Any) -> float:
    if type(alpha) not in (int, float) or not 0 < alpha < _MAX_ALPHA:
        raise _refused(f"{field} is {str(alpha)[:40]}", "It is a number above 0.")
    return float(alpha)


def _rank(field: str, rank: Any) -> int:
    if type(rank) is not int or rank < 1:
        raise _refused(f"{field} is {rank!r}", "A rank is a whole number above 0.")
    return rank


def _targets(targets: Any) -> tuple[str, ...] | None:
    if isinstance(targets, str) and targets:
        return None
    if isinstance(targets, list) and targets and all(isinstance(one, str) for one in targets):
        return tuple(targets)
    raise _refused(
        f"target_modules is {str(targets)[:120]!r}", "It is a list of module names, not empty."
    )


def _refused(message: str, next_step: str) -> GraftError:
    return refused(CHECK, f"adapter_config.json: {message}", next_step)
