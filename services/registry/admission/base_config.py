"""Reads a base's config.json and compares what it says generically with the tensors there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graft.errors import GraftError

from services.registry.admission.coverage import ranges
from services.registry.admission.header import Tensor
from services.registry.admission.json_text import NotJsonError, read_object
from services.registry.admission.selectors import layer_of
from services.registry.errors import refused

CHECK, EMBEDDINGS, LAYERS = "config", "embeddings", "layers"
_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_MAX_LAYERS = 10_000


def read_json(path: str, text: bytes) -> dict[str, Any]:
    """A configuration file, which names no code.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    try:
        config = read_object(text)
    except NotJsonError as error:
        raise _refused(path, str(error), "Save the model again with save_pretrained().") from None
    key = _code_key(config)
    if key:
        raise _refused(
            path,
            f"it has {key}, which makes a loader run code that comes with the model",
            "Save it as a model that transformers has, without code of its own.",
        )
    return config


def check_model_type(config: Mapping[str, Any]) -> None:
    """Refuses a config.json that does not say what model it is.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise _refused(
            "config.json", "it names no model_type", "Save the model with save_pretrained()."
        )


def _code_key(value: Any) -> str:
    """The first key, however deep, that makes loaders run code; depth is bounded by the parser."""
    if isinstance(value, dict):
        for key in _CODE_KEYS:
            if value.get(key):
                return key
        value = list(value.values())
    if isinstance(value, list):
        return next(filter(None, map(_code_key, value)), "")
    return ""


def check_embeddings(config: Mapping[str, Any], found: Sequence[Tensor]) -> str:
    """Compares the token embedding, if it is one, with vocab_size and the width; says what it is.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    text = _text_config(config)
    widths = {text[key] for key in _WIDTHS if type(text.get(key)) is int}
    rows = text.get("vocab_size")
    if len(found) != 1 or not widths or type(rows) is not int:
        return "not compared: there is not exactly one token embedding with a size said of it"
    (tensor,) = found
    if tensor.shape[0] != rows or tensor.shape[1] not in widths:
        width = min(widths) if len(widths) == 1 else sorted(widths)
        raise refused(
            EMBEDDINGS,
            f"tensor {tensor.name}: its shape is {list(tensor.shape)}, but config.json says "
            f"{rows} tokens (vocab_size) of width {width}",
            "Commit config.json and weights of one save.",
            tensor=tensor.name,
        )
    return f"{tensor.name} is {list(tensor.shape)}, as config.json says"


def is_embedding(tensor: Tensor) -> bool:
    """Whether it is a token embedding by its name."""
    return len(tensor.shape) == 2 and any(
        tensor.name == name or tensor.name.endswith("." + name) for name in _EMBEDDINGS
    )


def check_layers(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """Whether some list of layers has all that config.json counts; says what was found.

    Raises:
        GraftError: VERSION_REFUSED, naming the first layer that is missing.
    """
    text = _text_config(config)
    count = next((text[key] for key in _LAYERS if type(text.get(key)) is int), None)
    if count is None:
        return "not compared: config.json does not say how many"
    if not 0 < count <= _MAX_LAYERS:
        raise refused(
            LAYERS,
            f"config.json says {str(count)[:20]} layers",
            f"It is a number from 1 to {_MAX_LAYERS}.",
        )
    lists: dict[str, set[int]] = {}
    for name in names:
        before, layer, _ = layer_of(name)
        if layer is not None:
            lists.setdefault(before, set()).add(layer)
    missing = [_missing(count, found) for found in lists.values()]
    if not missing or min(map(len, missing)):
        first = min(missing, key=len)[0] if missing else 0
        raise refused(
            LAYERS,
            f"config.json says {count} layers, but no tensor is of layer {first}",
            "Commit all shards, and config.json and weights of one save.",
            layer=first,
        )
    return f"layers {ranges(range(count))}: all {count}"


def _missing(count: int, found: set[int]) -> Sequence[int]:
    return [layer for layer in range(count) if layer not in found]


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _refused(path: str, why: str, next_step: str) -> GraftError:
    return refused(CHECK, f"{path}: {why}", next_step, path=path)
