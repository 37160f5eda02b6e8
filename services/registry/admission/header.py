"""Reads a safetensors header as the format's description has it, trusting nothing in it.

https://github.com/huggingface/safetensors#format: 8 bytes of length, JSON, then the tensors' bytes
without gaps or overlaps. Does not read tensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError

from services.registry.admission.limits import Limits
from services.registry.errors import refused

CHECK = "safetensors"
LENGTH_BYTES = 8
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_MAX_NAME = 512
_SAVE_AGAIN = "Save the adapter again with safetensors, and upload the whole file."


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry; begin and end are positions in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def header_length(prefix: bytes, size_bytes: int, limits: Limits) -> int:
    """Size of the header in bytes.

    Args:
        prefix: the first bytes of the file, 16 where it has so many.
        size_bytes: size of the file.
        limits: the limits.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    _refuse_other_formats(prefix)
    if len(prefix) <= LENGTH_BYTES:
        raise refused(CHECK, f"The weights have only {size_bytes} bytes", _SAVE_AGAIN)
    length: int = struct.unpack("<Q", prefix[:LENGTH_BYTES])[0]
    if length > limits.max_header_bytes:
        raise refused(
            CHECK,
            f"The header of the weights is said to have {length} bytes, and "
            f"{limits.max_header_bytes} are allowed",
            _SAVE_AGAIN,
        )
    if length + LENGTH_BYTES > size_bytes:
        raise refused(
            CHECK,
            f"The weights are truncated: the header has {length} bytes and the file {size_bytes}",
            _SAVE_AGAIN,
        )
    return length


def _refuse_other_formats(prefix: bytes) -> None:
    # A safetensors file has "{" in the ninth place, after its header's length.
    if prefix[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{":
        return
    found = ""
    if prefix.startswith(b"PK\x03\x04"):
        found = "a zip archive, as torch.save writes it, with a pickle inside"
    elif prefix[:1] == b"\x80" and prefix[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a pickle"
    elif prefix.startswith(b"\x1f\x8b"):
        found = "a gzip archive"
    elif prefix.startswith(b"GGUF"):
        found = "a GGUF file"
    if found:
        raise refused(
            CHECK,
            f"The weights are {found}, and not safetensors, whatever the name says",
            "Load it where you trust it and save it with safe_serialization=True.",
        )
    raise refused(CHECK, "The weights are not a safetensors file", _SAVE_AGAIN)


def parse_header(text: bytes, size_bytes: int, limits: Limits) -> list[Tensor]:
    """The tensors in the order of their bytes, which they cover without gap or overlap.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    entries = _entries(text)
    entries.pop("__metadata__", None)
    if not entries:
        raise refused(CHECK, "The weights hold no tensor", _SAVE_AGAIN)
    if len(entries) > limits.max_tensors:
        raise refused(
            CHECK,
            f"The weights hold {len(entries)} tensors, and {limits.max_tensors} are allowed",
            "Target fewer modules, or raise GRAFT_REGISTRY_MAX_TENSORS.",
        )
    data_begin = LENGTH_BYTES + len(text)
    tensors = sorted(
        (_tensor(name, entry, data_begin) for name, entry in entries.items()),
        key=lambda tensor: (tensor.begin, tensor.end),
    )
    _check_cover(tensors, data_begin, size_bytes)
    return tensors


def _entries(text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        why = f": {error}" if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) else ""
        raise refused(
            CHECK, f"The header of the weights is not JSON{why}"[:300], _SAVE_AGAIN
        ) from None
    if not isinstance(entries, dict):
        raise refused(CHECK, "The header of the weights is not a JSON object", _SAVE_AGAIN)
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise refused(
            CHECK,
            f"{twice[:_MAX_NAME]!r} is in the header twice",
            _SAVE_AGAIN,
            tensor=twice[:_MAX_NAME],
        )
    return found


def _tensor(name: str, entry: Any, data_begin: int) -> Tensor:
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise refused(CHECK, f"{name[:80]!r} cannot be a tensor's name", _SAVE_AGAIN)
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if (
            _are_sizes(shape) and _are_sizes([begin, end]) and len(entry) == 3
        ):
            tensor = Tensor(name, dtype, tuple(shape), data_begin + begin, data_begin + end)
        case _:
            raise _broken(name, "its entry has no dtype, shape and data_offsets as it should")
    if dtype not in DTYPE_BYTES:
        raise _broken(
            name,
            f"its dtype is {dtype[:20]}; an adapter may have {', '.join(DTYPE_BYTES)}",
            "Save the adapter in bfloat16, float16 or float32.",
        )
    if tensor.parameters * DTYPE_BYTES[dtype] != tensor.end - tensor.begin:
        raise _broken(
            name,
            f"its shape {list(shape)[:8]} of {dtype} does not fit the "
            f"{tensor.end - tensor.begin} bytes it has",
        )
    return tensor


def _are_sizes(values: list[Any]) -> bool:
    return len(values) <= 8 and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _check_cover(tensors: list[Tensor], data_begin: int, size_bytes: int) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin < position:
            raise _broken(tensor.name, "its bytes overlap those of another tensor")
        if tensor.begin > position:
            raise _broken(tensor.name, f"{tensor.begin - position} bytes before it belong to none")
        position = tensor.end
    if position > size_bytes:
        raise _broken(
            tensors[-1].name,
            f"the file is truncated: its bytes end at {position}, and the file has {size_bytes}",
        )
    if position < size_bytes:
        raise refused(
            CHECK, f"{size_bytes - position} bytes at the end belong to no tensor", _SAVE_AGAIN
        )


def _broken(name: str, why: str, next_step: str = _SAVE_AGAIN) -> GraftError:
    return refused(CHECK, f"tensor {name}: {why}", next_step, tensor=name)
