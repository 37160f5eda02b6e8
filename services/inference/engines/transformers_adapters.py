"""Reads an adapter's folder into tensors on the device: keys and values that stand before the prompt, and effects.

Every tensor is accounted for: what the base has no place for is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from safetensors.torch import load_file
from torch import Tensor

from services.inference.engines.transformers_effects import ACTIVATIONS, Bottleneck, Effect
from services.inference.engines.transformers_linear import low_rank, scales
from services.inference.engines.transformers_tensors import (
    PREFIX,
    UnfitError,
    check_finite,
    take,
)

_PROMPT = "prompt_embeddings"
_ATTENTIONS = ("self_attn", "attn", "self_attention", "attention")
KeysValues = Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class LoadedAdapter:
    """An adapter that requests can be computed with.

    Attributes:
        past: per layer, keys and values of shape (1, heads, tokens, features) that come before the prompt.
        past_tokens: how many tokens these are.
        effects: by path of the base's module.
    """

    past: KeysValues = ()
    past_tokens: int = 0
    effects: Mapping[str, Effect] = field(default_factory=dict)


class AdapterReader:
    """Reads adapters for one base.

    Args:
        model: of transformers.
        past_of: keys and values that the base makes of embeddings of shape (tokens, features).
    """

    def __init__(self, model: Any, past_of: Callable[[Tensor], KeysValues]) -> None:
        self._model, self._past_of = model, past_of

    def read(self, name: str, folder: Path) -> LoadedAdapter:
        """The adapter of a folder.

        Raises:
            GraftError: ADAPTER_UNUSABLE, naming the field or the tensor.
        """
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
            tensors = load_file(
                folder / "adapter_model.safetensors", device=str(self._model.device)
            )
            return self._read(config, tensors)
        except UnfitError as error:
            raise _unusable(name, str(error)) from None
        except torch.OutOfMemoryError:
            raise _unusable(name, "it does not fit into the device's memory") from None
        except GraftError:
            raise
        except Exception as error:
            # A file that cannot be read has many exceptions; none of them is the engine's end.
            raise _unusable(name, str(error) or type(error).__name__) from error

    def _read(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> LoadedAdapter:
        for tensor_name, tensor in tensors.items():
            check_finite(tensor_name, tensor)
        kind = config.get("peft_type")
        match kind:
            case "PREFIX_TUNING":
                adapter = self._prefix(config, tensors)
            case "PROMPT_TUNING" | "P_TUNING":
                adapter = self._prompt(tensors)
            case "BOTTLENECK":
                adapter = LoadedAdapter(effects=self._bottlenecks(config, tensors))
            case "LORA" | "ADALORA":
                adapter = LoadedAdapter(effects=low_rank(self._model, config, tensors))
            case "IA3":
                adapter = LoadedAdapter(effects=scales(self._model, config, tensors))
            case _:
                raise UnfitError(f"it is {kind}, which the transformers engine does not compute")
        if tensors:
            raise UnfitError(f"tensor {min(tensors)}: the base has no place for it")
        return adapter

    def _prefix(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> LoadedAdapter:
        text = self._model.config.get_text_config()
        heads = int(config["num_attention_heads"])
        features = int(config["token_dim"]) // heads
        layers, tokens = int(config["num_layers"]), int(config["num_virtual_tokens"])
        if layers != text.num_hidden_layers:
            raise UnfitError(f"num_layers is {layers}, and the base has {text.num_hidden_layers}")
        if getattr(text, "num_kv_shared_layers", 0):
            raise UnfitError("the base's layers share keys and values")
        given = take(tensors, _PROMPT, (tokens, layers * 2 * heads * features))
        # As PEFT cuts it: tokens, then layers' keys and values in turn, then heads.
        cut = self._as_base(given).view(1, tokens, layers * 2, heads, features)
        cut = cut.permute(2, 0, 3, 1, 4).contiguous()
        past = [(cut[2 * layer], cut[2 * layer + 1]) for layer in range(layers)]
        self._check_past(past)
        return LoadedAdapter(past, tokens)

    def _prompt(self, tensors: dict[str, Tensor]) -> LoadedAdapter:
        """What the base makes of learned embeddings never changes: they are computed once."""
        width = self._model.get_input_embeddings().weight.shape[1]
        given = tensors.pop(_PROMPT, None)
        if given is None or given.dim() != 2 or given.shape[1] != width:
            raise UnfitError(f"tensor {_PROMPT}: it is missing, or not {width} wide as the base")
        return LoadedAdapter(self._past_of(self._as_base(given)), given.shape[0])

    def _as_base(self, given: Tensor) -> Tensor:
        converted = given.to(self._model.dtype)
        check_finite(_PROMPT, converted)
        return converted

    def _check_past(self, past: KeysValues) -> None:
        embedding = self._model.get_input_embeddings().weight
        own = self._past_of(embedding[:1])
        for layer, ((keys, _), (expected, _)) in enumerate(zip(past, own, strict=True)):
            if keys.shape[1::2] != expected.shape[1::2]:
                raise UnfitError(
                    f"tensor {_PROMPT}: layer {layer} of the base has {expected.shape[1]} heads of keys with "
                    f"{expected.shape[3]} features, and the adapter {keys.shape[1]} with {keys.shape[3]}"
                )

    def _bottlenecks(
        self, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> dict[str, Effect]:
        size, activation = int(config["size"]), str(config.get("activation"))
        if activation not in ACTIVATIONS:
            raise UnfitError(f"activation is {activation!r}")
        hidden = self._model.config.get_text_config().hidden_size
        effects: dict[str, Effect] = {}
        for layer, attention in self._layers():
            for wanted, place, module in (
                ("after_attention", "attention_bottleneck", attention),
                ("after_mlp", "mlp_bottleneck", "mlp"),
            ):
                if config.get(wanted):
                    stem = f"{PREFIX}{layer}.{place}"
                    effects[f"{layer}.{module}"] = Bottleneck(
                        take(tensors, f"{stem}.down.weight", (size, hidden)),
                        take(tensors, f"{stem}.down.bias", (size,)),
                        take(tensors, f"{stem}.up.weight", (hidden, size)),
                        take(tensors, f"{stem}.up.bias", (hidden,)),
                        activation,
                    )
        return effects

    def _layers(self) -> list[tuple[str, str]]:
        """Paths of the decoder's layers, each with the name of its attention."""
        found = []
        for path, module in self._model.named_modules():
            attention = next((name for name in _ATTENTIONS if hasattr(module, name)), None)
            if attention is not None and hasattr(module, "mlp"):
                found.append((path, attention))
        if len(found) != self._model.config.get_text_config().num_hidden_layers:
            raise UnfitError("the base's layers are not built of an attention and an MLP")
        return found


def _unusable(name: str, why: str) -> GraftError:
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"The transformers engine cannot load {name}: {why}",
        next_step="Commit a version that was trained on this base, as the trainer saves it.",
    )
