"""What a base model is, without torch: its fingerprint, configuration and weight matrices.

Reads a folder; fingerprint() and matrices() also serve whoever has a base's digests and headers
otherwise. The shapes come from safetensors headers, so they are right for any architecture.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from graft.digests import digest_bytes, digest_file
from graft.errors import GraftError, Reason
from graft.registry.v1.registry_service_pb2 import Base, BaseFingerprint, BaseModule

# Change with every save and not with the model.
_VOLATILE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# transformers' Conv1D holds (in, out) where every other linear layer holds (out, in).
_TRANSPOSED_MODEL_TYPES = {"gpt2"}
_MAX_HEADER_BYTES = 100 * 1024 * 1024


class Identity(NamedTuple):
    """Digests of what a base consists of; digest is that of the other three."""

    digest: str
    config_digest: str
    tokenizer_digest: str
    weights_digest: str


class Matrix(NamedTuple):
    """A weight matrix by its module's path; it maps in_features numbers to out_features."""

    path: str
    in_features: int
    out_features: int


def fingerprint(config: Mapping[str, Any], digests: Mapping[str, str]) -> Identity:
    """A base's identity.

    Args:
        config: what its config.json says.
        digests: of its files, by name; those are looked at that make a tokenizer or hold weights.
    """
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    parts = (
        digest_bytes(json.dumps(kept, sort_keys=True).encode()),
        _digest_lines([name for name in _TOKENIZER_FILES if name in digests], digests),
        _digest_lines(sorted(name for name in digests if is_weights(name)), digests),
    )
    return Identity(digest_bytes("\n".join(parts).encode()), *parts)


def is_weights(name: str) -> bool:
    """Whether a file of that name holds a base's weights."""
    return name.endswith(".safetensors")


def matrices(
    shapes: Iterable[tuple[str, Sequence[int]]], config: Mapping[str, Any]
) -> Iterable[Matrix]:
    """The weight matrices among a weights file's tensors, by name.

    Args:
        shapes: name and shape of every tensor of the file.
        config: what the base's config.json says.
    """
    transposed = config["model_type"] in _TRANSPOSED_MODEL_TYPES
    packing = _packing(config)
    for tensor, shape in sorted(shapes):
        path, _, kind = tensor.rpartition(".")
        if len(shape) != 2 or not path:
            continue
        if kind == "weight":
            out_features, in_features = reversed(shape) if transposed else shape
            yield Matrix(path, in_features, out_features)
        elif kind in packing:
            in_per_column, out_per_row, inputs_first = packing[kind]
            rows, columns = shape if inputs_first else reversed(shape)
            yield Matrix(path, rows * in_per_column, columns * out_per_row)


def _packing(config: Mapping[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """How a quantized base packs its integers, by the last part of a tensor's name.

    Returns:
        Inputs and outputs that one number of the tensor stands for, and whether its rows are inputs.
    """
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return {}
    method = said.get("quant_method")
    if method == "compressed-tensors":
        return {"weight_packed": (_per_word(_group_bits(said)), 1, False)}
    per_word = _per_word(said.get("bits"))
    return {
        "gptq": {"qweight": (per_word, 1, True)},
        "awq": {"qweight": (1, per_word, True)},
    }.get(str(method), {})


def _per_word(bits: object) -> int:
    """Integers in 32 bits."""
    return 32 // bits if isinstance(bits, int) and bits in (2, 4, 8) else 8


def _group_bits(said: Mapping[str, Any]) -> object:
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return weights.get("num_bits") if isinstance(weights, Mapping) else None


def _digest_lines(names: Sequence[str], digests: Mapping[str, str]) -> str:
    return digest_bytes("\n".join(f"{name} {digests[name]}" for name in names).encode())


def read_base(folder: Path, name: str) -> Base:
    """Everything that the registry wants to know of a base.

    Args:
        folder: a Hugging Face model with config.json, a tokenizer and safetensors files.
        name: its resource name, "namespaces/{ns}/bases/{base}".

    Raises:
        GraftError: NOT_A_MODEL, with what is missing.
    """
    config, weights = _open(folder)
    return Base(
        name=name,
        source=str(folder),
        fingerprint=BaseFingerprint(**_identity(folder, config, weights)._asdict()),
        config_json=json.dumps(config, sort_keys=True),
        modules=_modules(weights, config),
    )


def read_modules(folder: Path) -> list[BaseModule]:
    """The weight matrices of a base, from its files' headers alone: fast however large it is.

    Raises:
        GraftError: NOT_A_MODEL, with what is missing.
    """
    config, weights = _open(folder)
    return _modules(weights, config)


def read_tensors(folder: Path) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Name, type ("F32", "I8" ...) and shape of every tensor of a base, from its files' headers alone.

    Raises:
        GraftError: NOT_A_MODEL, with what is missing.
    """
    for path in _open(folder)[1]:
        for name, info in _header(path).items():
            yield name, str(info.get("dtype", "")), info.get("shape", ())


def _open(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise _not_a_model(folder, "it has no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(folder.glob("*.bin"))
        raise _not_a_model(
            folder,
            "its weights are pickles (.bin), which can run code"
            if pickled
            else "it has no .safetensors file",
        )
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except ValueError as error:
        raise _not_a_model(folder, f"its config.json is not JSON ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise _not_a_model(folder, "its config.json names no model_type")
    return config, weights


def _identity(folder: Path, config: dict[str, Any], weights: list[Path]) -> Identity:
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return fingerprint(config, {path.name: digest_file(path) for path in [*tokenizer, *weights]})


def _modules(weights: list[Path], config: dict[str, Any]) -> list[BaseModule]:
    return [
        BaseModule(**matrix._asdict())
        for path in weights
        for matrix in matrices(_shapes(path), config)
    ]


def _shapes(path: Path) -> list[tuple[str, Sequence[int]]]:
    return [(name, info.get("shape", ())) for name, info in _header(path).items()]


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        prefix = file.read(8)
        size_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 <= size_bytes <= _MAX_HEADER_BYTES:
            raise _not_a_model(path.parent, f"{path.name} is not a safetensors file")
        try:
            header = json.loads(file.read(size_bytes))
        except ValueError:
            raise _not_a_model(path.parent, f"{path.name} has a broken header") from None
    return {key: value for key, value in header.items() if key != "__metadata__"}


def _not_a_model(folder: Path, why: str) -> GraftError:
    return GraftError(
        Reason.NOT_A_MODEL,
        f"{folder} is not a model that can be used: {why}",
        next_step="Name a folder with config.json, a tokenizer and model.safetensors.",
        path=folder,
    )
