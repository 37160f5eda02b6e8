"""Reads adapter_config.json and refuses what an engine would refuse or, worse, serve wrongly.

The list of what vLLM cannot serve is vllm/lora/peft_helper.py's, and what it ignores silently; what
PEFT cannot load is peft/tuners/lora/config.py's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError

from services.registry.admission.json_text import NotJsonError, read_object
from services.registry.admission.selectors import Layers, Selector
from services.registry.errors import refused

CHECK = "adapter-config"
# They set only the adapter's first weights; others (PiSSA, OLoRA, CorDA, LoftQ) change the base.
_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_UNSERVABLE = {
    "lora_bias": "a bias on LoRA's matrices",
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
    "megatron_config": "Megatron's layers",
}
_SWITCHES = ("use_rslora", "use_dora", "fan_in_fan_out", "inference_mode")
_HEADS = ("score", "classifier")
# A plain module name or path; "^" anchors it. Others would be patterns of unbounded cost.
_PLAIN = re.compile(r"\^?[A-Za-z0-9_-]+(?:\\?\.[A-Za-z0-9_-]+)*")
_MAX_NAME = 512
_MAX_ALPHA = 1e9
_FIX = "Correct adapter_config.json: it must say what the tensors are."


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter says of itself.

    targets is None where target_modules is a pattern: then the tensors decide. every_layer says
    that what is targeted in one layer is targeted in all, but for layers and excluded.
    """

    rank: int
    alpha: float
    rslora: bool
    targets: Selector[None] | None
    excluded: Selector[None]
    every_layer: bool
    layers: Layers
    ranks: Selector[int]
    alphas: Selector[float]
    dora: bool = False
    heads: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """The rank of a module: by the first entry of rank_pattern that names it, as PEFT has it."""
        found = self.ranks.find(module)
        return self.rank if found is None else self.ranks.values[found]

    def in_layers(self, module: str) -> bool:
        """Whether layers_to_transform lets a module be adapted; one named by its path always is."""
        named = self.targets is not None and module in self.targets.values
        return named or self.layers.has(module)


def read_config(text: bytes) -> dict[str, Any]:
    """adapter_config.json, without anything that would run code.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    try:
        config = read_object(text)
    except NotJsonError as error:
        raise _refused(str(error), _FIX) from None
    _refuse_code(config)
    return config


def lora_config(config: dict[str, Any]) -> AdapterConfig:
    """What the configuration of a LoRA says.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    if config.get("peft_type") != "LORA":
        raise _refused(
            f"peft_type is {shown(config.get('peft_type'))}",
            "This registry takes LoRA and its relatives, IA3, prompt methods and bottleneck adapters: train "
            "with one of `graft methods`.",
        )
    _refuse_unservable(config)
    return _config(config)


def _config(config: dict[str, Any]) -> AdapterConfig:
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    return AdapterConfig(
        rank=_rank("r", config.get("r")),
        alpha=_alpha("lora_alpha", config.get("lora_alpha")),
        rslora=bool(config.get("use_rslora")),
        targets=_targets(targets),
        excluded=_names("exclude_modules", [] if isinstance(excluded, str) else excluded or []),
        every_layer=(isinstance(targets, list) or targets == "all-linear")
        and not isinstance(excluded, str),
        layers=_layers(config),
        ranks=_pattern(config, "rank_pattern", _rank),
        alphas=_pattern(config, "alpha_pattern", _alpha),
        dora=bool(config.get("use_dora")),
        heads=_heads(config),
    )


def _heads(config: dict[str, Any]) -> tuple[str, ...]:
    """Fully trained modules: the head of a reward model, and nothing else."""
    saved = config.get("modules_to_save") or []
    _names("modules_to_save", saved)
    if saved and (config.get("task_type") != "SEQ_CLS" or not set(saved) <= set(_HEADS)):
        raise _refused(
            f"modules_to_save is {shown(saved)}: fully trained modules cannot be served",
            "Merge it into a base, or train a plain LoRA; the head of a reward model (SEQ_CLS) may stay.",
        )
    if not saved and config.get("task_type") == "SEQ_CLS":
        raise _refused(
            "task_type is SEQ_CLS, but modules_to_save names no head: its answers would be random",
            'Train with modules_to_save=["score"].',
        )
    return tuple(saved)


def _refuse_unservable(config: dict[str, Any]) -> None:
    for field, what in _UNSERVABLE.items():
        if config.get(field):
            raise _refused(
                f"{field} is set: it uses {what}, which the engine cannot serve",
                "Merge it into a base, or train a plain LoRA.",
            )
    for field in _SWITCHES:
        if type(config.get(field, False)) is not bool and config[field] is not None:
            raise _refused(f"{field} is {shown(config[field])}", "It is true or false.")
    if config.get("bias", "none") != "none":
        raise _refused(
            f"bias is {shown(config['bias'])}: trained biases cannot be served",
            'Train with bias="none".',
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _INITS:
        raise _refused(
            f"init_lora_weights is {shown(init)}: such an adapter fits only a changed base",
            "Convert it: save_pretrained with path_initial_model_for_weight_conversion.",
        )


def _refuse_code(config: dict[str, Any]) -> None:
    """PEFT imports the module that auto_mapping names."""
    library = (config.get("auto_mapping") or {}) if "auto_mapping" in config else {}
    library = library.get("parent_library") if isinstance(library, dict) else library
    if library is not None and (
        not isinstance(library, str) or library.partition(".")[0] not in ("transformers", "peft")
    ):
        raise _refused(
            f"auto_mapping imports {shown(library)}, which is code from elsewhere",
            "Save the adapter with a task_type, or of a model that transformers has.",
        )
    if config.get("auto_map"):
        raise _refused("auto_map names code to load", "Save the adapter without it.")


def _layers(config: dict[str, Any]) -> Layers:
    wanted, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if isinstance(config.get("target_modules"), str) and (wanted is not None or patterns):
        raise _refused(
            "layers_to_transform and layers_pattern cannot go with a pattern as target_modules",
            "PEFT would not load it: say the layers in the pattern.",
        )
    if patterns and wanted is None:
        raise _refused(
            "layers_pattern is set without layers_to_transform",
            "PEFT would not load it: say which layers, or leave the pattern out.",
        )
    if wanted is not None:
        wanted = [wanted] if type(wanted) is int else wanted
        if not isinstance(wanted, list) or not all(type(one) is int and one >= 0 for one in wanted):
            raise _refused(
                f"layers_to_transform is {shown(wanted)}", "It is a list of layers' numbers."
            )
    patterns = [patterns] if isinstance(patterns, str) else patterns or []
    _names("layers_pattern", patterns)
    return Layers(frozenset(wanted) if wanted else None, tuple(patterns))


def _pattern(config: dict[str, Any], field: str, read: Any) -> Selector[Any]:
    found = config.get(field) or {}
    if not isinstance(found, dict):
        raise _refused(f"{field} is not an object", _FIX)
    return Selector(
        {_plain(field, key): read(f"{field}[{shown(key)}]", value) for key, value in found.items()}
    )


def _targets(targets: Any) -> Selector[None] | None:
    if isinstance(targets, str) and targets:
        return None
    if not isinstance(targets, list) or not targets:
        raise _refused(
            f"target_modules is {shown(targets)}", "It is a list of module names, not empty."
        )
    return _names("target_modules", targets)


def _names(field: str, names: Any) -> Selector[None]:
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise _refused(f"{field} is {shown(names)}", "It is a list of module names.")
    return Selector({_plain(field, name): None for name in names})


def _plain(field: str, key: str) -> str:
    if len(key) > _MAX_NAME or _PLAIN.fullmatch(key) is None:
        raise _refused(
            f"{field} has {shown(key)}, which is a regular expression or no module's name",
            "Name the modules by their path or the end of it.",
        )
    return key.replace("\\.", ".")


def _alpha(field: str, alpha: Any) -> float:
    if type(alpha) not in (int, float) or not 0 < alpha < _MAX_ALPHA:
        raise _refused(f"{field} is {shown(alpha)}", "It is a number above 0.")
    return float(alpha)


def _rank(field: str, rank: Any) -> int:
    if type(rank) is not int or rank < 1:
        raise _refused(f"{field} is {shown(rank)}", "A rank is a whole number above 0.")
    return rank


def shown(value: Any) -> str:
    """What stands there, short and in ASCII; whole numbers may be too long for repr."""
    if type(value) is int and value.bit_length() > 256:
        return "a number too large"
    return ascii(value)[:120]


def _refused(message: str, next_step: str) -> GraftError:
    return refused(CHECK, f"adapter_config.json: {message}", next_step, path="adapter_config.json")
