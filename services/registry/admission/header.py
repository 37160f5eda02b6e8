"""Reads a safetensors header as the format's description has it, trusting nothing in it.

https://github.com/huggingface/safetensors#format: 8 bytes of length, JSON, then the tensors' bytes
without gaps or overlaps. Reads entry by entry, so that memory is bounded by the tensors allowed,
whatever JSON is sent. Does not read tensors.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from graft.errors import GraftError

from services.registry.admission import magic
from services.registry.admission.dtypes import DTYPE_BITS
from services.registry.admission.limits import MIB
from services.registry.errors import refused

CHECK = "safetensors"
LENGTH_BYTES = 8
PREFIX_BYTES = 2 * LENGTH_BYTES
_MAX_NAME = 512
_MAX_METADATA_BYTES = MIB
_MAX_DIAGNOSED_BYTES = MIB
_SAVE_AGAIN = "Save it again with safetensors, and upload the whole file."

# The grammar of the header. Every repetition is possessive: nothing is tried twice.
_S = rb"[ \t\n\r]*+"
_TEXT = rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
_SIZE = rb"(?:0|[1-9][0-9]{0,18})"
_FIELD = (
    rb'(?:"dtype"' + _S + rb":" + _S + rb'"(?P<dtype>[A-Za-z0-9_]{1,16})"'
    rb'|"shape"' + _S + rb":" + _S + rb"\[(?P<shape>" + _S
    + rb"(?:" + _SIZE + _S + rb"(?:," + _S + _SIZE + _S + rb"){0,7}+)?+)\]"
    rb'|"data_offsets"' + _S + rb":" + _S + rb"\[" + _S + rb"(?P<begin>" + _SIZE + rb")" + _S
    + rb"," + _S + rb"(?P<end>" + _SIZE + rb")" + _S + rb"\])" + _S
)  # fmt: skip
_NAME = re.compile(_S + rb"(?P<name>" + _TEXT + rb")" + _S + rb":" + _S)
_ENTRY = re.compile(rb"\{" + _S + rb"(?:" + _FIELD + rb"(?:," + _S + rb'(?=")|(?=\}))){3}+\}')
_METADATA = re.compile(
    rb"\{" + _S + rb"(?:" + _TEXT + _S + rb":" + _S + _TEXT + _S
    + rb"(?:," + _S + rb'(?=")|(?=\})))*+\}'
)  # fmt: skip
_NEXT = re.compile(_S + rb"(?P<mark>[,}])")
_END = re.compile(_S)


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


@dataclass(frozen=True, slots=True)
class HeaderRules:
    """What a weights file may hold.

    file is its path, for messages; dtypes are those that are allowed in it.
    """

    file: str
    dtypes: frozenset[str]
    max_header_bytes: int
    max_tensors: int


def header_length(prefix: bytes, size_bytes: int, rules: HeaderRules) -> int:
    """Size of the header in bytes.

    Args:
        prefix: the first bytes of the file, 16 where it has so many.
        size_bytes: size of the file.
        rules: what it may hold.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    if prefix[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise _other_format(prefix, rules)
    length: int = struct.unpack("<Q", prefix[:LENGTH_BYTES])[0]
    if not 2 <= length <= rules.max_header_bytes:
        raise _refused(
            rules,
            f"its header is said to have {length} bytes; 2 to {rules.max_header_bytes} are allowed",
        )
    if length + LENGTH_BYTES > size_bytes:
        raise _refused(
            rules, f"it is truncated: its header has {length} bytes and the file {size_bytes}"
        )
    return length


def _other_format(prefix: bytes, rules: HeaderRules) -> GraftError:
    # A safetensors file has "{" in the ninth place, after its header's length.
    found = magic.format_of(prefix)
    if found:
        return _refused(
            rules,
            f"it is {found}, and not safetensors, whatever its name says",
            "Load it where you trust it and save it with safe_serialization=True.",
        )
    return _refused(rules, "it is not a safetensors file")


def parse_header(text: bytes, size_bytes: int, rules: HeaderRules) -> list[Tensor]:
    """The tensors in the order of their bytes, which they cover without gap or overlap.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    data_begin = LENGTH_BYTES + len(text)
    tensors: dict[str, Tensor] = {}
    for name, entry in _entries(text, rules):
        if name in tensors:
            raise _broken(rules, name, "it is in the header twice")
        if len(tensors) == rules.max_tensors:
            raise _refused(
                rules,
                f"it holds more than {rules.max_tensors} tensors, which is the most that is allowed",
                "Target fewer modules, or raise GRAFT_REGISTRY_MAX_TENSORS.",
            )
        tensors[name] = _tensor(name, entry, data_begin, rules)
    if not tensors:
        raise _refused(rules, "it holds no tensor")
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(ordered, data_begin, size_bytes, rules)
    return ordered


def _entries(text: bytes, rules: HeaderRules) -> Iterator[tuple[str, re.Match[bytes]]]:
    """Name and entry of every tensor; metadata is checked and skipped."""
    at, seen_metadata = 1, False
    following = _END.match(text, at)
    if following and text[following.end() : following.end() + 1] == b"}":
        at = following.end() + 1
    else:
        while True:
            named = _NAME.match(text, at)
            if named is None:
                raise _not_json(text, at, rules)
            if named["name"] == b'"__metadata__"':
                if seen_metadata:
                    raise _broken(rules, "__metadata__", "it is in the header twice")
                seen_metadata = True
                at = _skip_metadata(text, named.end(), rules)
            else:
                name = _name(named["name"], rules)
                entry = _ENTRY.match(text, named.end())
                if entry is None:
                    raise _bad_entry(text, at, name, rules)
                yield name, entry
                at = entry.end()
            following = _NEXT.match(text, at)
            if following is None:
                raise _not_json(text, at, rules)
            at = following.end()
            if following["mark"] == b"}":
                break
    rest = _END.match(text, at)
    if rest is None or rest.end() != len(text):
        raise _not_json(text, at, rules)


def _name(quoted: bytes, rules: HeaderRules) -> str:
    """A tensor's name: ASCII, so that no two look alike."""
    if len(quoted) <= 6 * _MAX_NAME:
        try:
            name = str(json.loads(quoted))
        except ValueError:
            name = ""
        if 0 < len(name) <= _MAX_NAME and name.isascii() and name.isprintable():
            return name
    shown = quoted[1:80].decode("ascii", "backslashreplace")
    raise _refused(
        rules,
        f"{shown!a} cannot be a tensor's name: it is 1 to {_MAX_NAME} printable ASCII characters",
    )


def _skip_metadata(text: bytes, at: int, rules: HeaderRules) -> int:
    found = _METADATA.match(text, at)
    if found is None:
        raise _bad_entry(text, at, "__metadata__", rules, "it is not an object of texts")
    if found.end() - at > _MAX_METADATA_BYTES:
        raise _broken(
            rules,
            "__metadata__",
            f"it has {found.end() - at} bytes, and {_MAX_METADATA_BYTES} are allowed",
            "Save the weights without such metadata.",
        )
    try:
        # Half a surrogate pair is no text, and engines refuse to load it.
        json.dumps(json.loads(found[0]), ensure_ascii=False).encode()
    except UnicodeError:
        raise _broken(rules, "__metadata__", "it is not text in UTF-8") from None
    return found.end()


def _tensor(name: str, entry: re.Match[bytes], data_begin: int, rules: HeaderRules) -> Tensor:
    dtype_bytes, shape_bytes, begin, end = entry.group("dtype", "shape", "begin", "end")
    if dtype_bytes is None or shape_bytes is None or begin is None:
        raise _broken(rules, name, "its entry has no dtype, shape and data_offsets as it should")
    dtype = dtype_bytes.decode()
    if dtype not in rules.dtypes:
        raise _broken(
            rules,
            name,
            f"its dtype is {dtype}; allowed are {', '.join(sorted(rules.dtypes))}",
            "Save it in bfloat16, float16 or float32.",
        )
    shape = tuple(map(int, shape_bytes.split(b","))) if shape_bytes.strip() else ()
    tensor = Tensor(name, dtype, shape, data_begin + int(begin), data_begin + int(end))
    if tensor.parameters * DTYPE_BITS[dtype] != (tensor.end - tensor.begin) * 8:
        raise _broken(
            rules,
            name,
            f"its shape {list(shape)} of {dtype} does not fit the "
            f"{tensor.end - tensor.begin} bytes it has",
        )
    return tensor


def _check_cover(
    tensors: list[Tensor], data_begin: int, size_bytes: int, rules: HeaderRules
) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin < position:
            raise _broken(rules, tensor.name, "its bytes overlap those of another tensor")
        if tensor.begin > position:
            raise _broken(
                rules, tensor.name, f"{tensor.begin - position} bytes before it belong to none"
            )
        position = tensor.end
    if position > size_bytes:
        raise _broken(
            rules,
            tensors[-1].name,
            f"the file is truncated: its bytes end at {position}, and the file has {size_bytes}",
        )
    if position < size_bytes:
        raise _refused(rules, f"{size_bytes - position} bytes at its end belong to no tensor")


def _bad_entry(
    text: bytes,
    at: int,
    name: str,
    rules: HeaderRules,
    why: str = "its entry has no dtype, shape and data_offsets as it should",
) -> GraftError:
    return _broken(rules, name, why) if _is_json(text) else _not_json(text, at, rules)


def _not_json(text: bytes, at: int, rules: HeaderRules) -> GraftError:
    what = "not as the format has it" if len(text) > _MAX_DIAGNOSED_BYTES else "not JSON"
    return _refused(rules, f"its header is {what}, from byte {LENGTH_BYTES + at} on")


def _is_json(text: bytes) -> bool:
    """Whether it is, for a better message; what is large is not looked at."""
    if len(text) > _MAX_DIAGNOSED_BYTES:
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refused(rules: HeaderRules, why: str, next_step: str = _SAVE_AGAIN) -> GraftError:
    return refused(CHECK, f"{rules.file}: {why}", next_step, path=rules.file)


def _broken(rules: HeaderRules, name: str, why: str, next_step: str = _SAVE_AGAIN) -> GraftError:
    return refused(
        CHECK, f"{rules.file}: tensor {name}: {why}", next_step, tensor=name, path=rules.file
    )
